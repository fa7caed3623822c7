"""Rules by operation in the kernel: what it can read is decided by the rule for its path, the rest by user space."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spandial import abi
from spandial.abi import EntryKind, Flag, Mode
from spandial.operations import parse_operation
from spandial_agent.conversations import Call, Conversations
from spandial_agent.errors import OperationsFull
from spandial_agent.kernel.operations import OperationRule, find
from spandial_agent.table import Row
from tests.agent_process import eventually
from tests.kernel.conftest import Watched
from tests.kernel.remote import RemotePair
from tests.kernel.test_capture import traced
from tests.kernel.test_databases import Pair
from tests.kernel.test_http2 import PREFACE, Client, traceparent

pytestmark = pytest.mark.kernel

SET = 0xABCDEF01
BOTH = (EntryKind.HTTP, EntryKind.GRPC)


class Rules:
    """Rules by operation, each with a row of its own, that a process's row names."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self._table = watched.table
        self.rules: list[OperationRule] = []
        self.rows: dict[str, Row] = {}

    def set(self, rates: dict[str, float], base: float = 0, mode: Mode = Mode.FOLLOW, emit: bool = False) -> None:
        """These patterns' rates, the ones that win first, and everybody else's."""
        for text, rate in rates.items():
            if text not in self.rows:
                self.rows[text] = self._table.allocate(0, [0] * 4, 0)
            self.turn(text, rate, mode)
        self.rules = [OperationRule(BOTH, parse_operation(text), self.rows[text].number) for text in rates]
        self._watched.capture.set_operations(SET, self.rules)
        self._table.backend.write(self._watched.row.number, [SET << 32] * 8, 1 << abi.WORD_OPERATIONS)
        self._watched.set(abi.encode_word(base, mode, emit=emit) | Flag.OPERATIONS, abi.encode_word(0))

    def turn(self, text: str, rate: float, mode: Mode = Mode.FOLLOW) -> None:
        word = abi.encode_word(rate, mode)
        self._table.write(self.rows[text], [0, word, word, 0], 0)

    def close(self) -> None:
        self._watched.capture.drop_operations(SET)
        for row in self.rows.values():
            self._table.free(row)


@pytest.fixture
def rules(watched: Watched) -> Iterator[Rules]:
    rules = Rules(watched)
    yield rules
    rules.close()


@pytest.fixture
def ask(watched: Watched) -> Iterator[Callable[..., int]]:
    """Send a request to this process; whether it was kept."""
    client, server = socket.socketpair()

    def ask(request: str | bytes, count: int = 1) -> int:
        data = request if isinstance(request, bytes) else f"{request} HTTP/1.1\r\nhost: x\r\n\r\n".encode()
        seen, kept = watched.seen(), watched.kept()
        for _ in range(count):
            client.sendall(data)
            server.recv(65536)
        assert watched.seen() == seen + count
        return watched.kept() - kept

    yield ask
    client.close()
    server.close()


def test_a_rule_holds_for_the_paths_that_it_names_and_no_others(rules: Rules, ask: Callable[..., int]) -> None:
    rules.set({"/pay*": 100, "/ship": 100, "GET /who*": 100, "DELETE /orders/*": 100})
    for kept in (
        "GET /pay",
        "POST /payments/7",
        "GET /pay?card=1",
        "GET /ship",
        "PUT /ship?x",
        "GET /who",
        "GET /who/i",
    ):
        assert ask(kept, 50) == 50, kept
    assert ask("DELETE /orders/7") == 1
    for dropped in ("GET /", "GET /pa", "GET /?/pay", "GET /shipping", "POST /who", "DELETE /orders", "OPTIONS *"):
        assert ask(dropped, 50) == 0, dropped


def test_a_rule_may_say_less_than_the_others(rules: Rules, ask: Callable[..., int]) -> None:
    rules.set({"/health": 0, "HEAD *": 0}, base=100)
    assert [ask(request) for request in ("GET /health", "GET /health/db", "HEAD /", "GET /")] == [0, 1, 0, 1]


def test_of_several_rules_the_first_wins_however_long_its_path(rules: Rules, ask: Callable[..., int]) -> None:
    rules.set({"GET /a/b*": 100, "/a*": 0, "/a/b/c*": 100, "/*": 100})
    requests = ("GET /a/b/c", "GET /a/b", "POST /a/b", "POST /a/b/c", "GET /a", "GET /c")
    assert [ask(request) for request in requests] == [1, 1, 0, 0, 0, 1]


def test_a_turn_of_a_rule_holds_from_the_next_request_on(rules: Rules, ask: Callable[..., int]) -> None:
    rules.set({"/pay*": 0})
    for turn in range(200):
        rules.turn("/pay*", 100 * (turn % 2))
        assert ask("GET /pay") == turn % 2
        assert ask("GET /") == 0


def test_rules_come_and_go(watched: Watched, rules: Rules, ask: Callable[..., int]) -> None:
    rules.set({"/pay*": 100})
    assert ask("GET /pay") == 1
    rules.set({"/ship*": 100, "POST /pay": 100})
    assert [ask(request) for request in ("GET /pay", "POST /pay", "GET /ship")] == [0, 1, 1]
    watched.capture.drop_operations(SET)
    assert [ask(request) for request in ("POST /pay", "GET /ship")] == [0, 0]


def test_without_the_flag_no_rule_by_operation_holds(watched: Watched, rules: Rules, ask: Callable[..., int]) -> None:
    rules.set({"/pay*": 100})
    watched.set(abi.encode_word(0))
    assert ask("GET /pay") == 0


def test_a_rule_that_is_for_another_kind_leaves_the_targets_own_word(
    watched: Watched, rules: Rules, ask: Callable[..., int]
) -> None:
    rules.set({"/pay*": 0}, base=100)
    watched.table.write(rules.rows["/pay*"], [0, 0, abi.encode_word(0), 0], 0)
    assert ask("GET /pay") == 1


def test_when_the_lease_has_run_out_no_rule_by_operation_holds(
    watched: Watched, rules: Rules, ask: Callable[..., int]
) -> None:
    rules.set({"/pay*": 100})
    watched.table.renew_lease(-1)
    assert ask("GET /pay") == 0
    watched.table.renew_lease(60)
    assert ask("GET /pay") == 1


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("sampled", [True, False])
def test_the_callers_decision_is_honoured_as_the_rules_mode_says(
    rules: Rules, ask: Callable[..., int], mode: Mode, sampled: bool
) -> None:
    """Also where the target's own word would not have looked behind the traceparent."""
    rules.set({"/*": 50}, mode=mode)
    low, high = f"{1:014x}", f"{abi.RANDOMNESS_MASK:014x}"
    followed = [sampled, sampled]
    expected = {Mode.FOLLOW: followed, Mode.BOOST: [sampled, True], Mode.STRICT: [False, True]}[mode]
    assert [ask(traced(sampled, tracestate=f"ot=rv:{rv}")) == 1 for rv in (low, high)] == expected


def test_the_record_has_the_word_that_was_obeyed(watched: Watched, rules: Rules, ask: Callable[..., int]) -> None:
    rules.set({"/pay*": 100}, base=100, mode=Mode.BOOST, emit=True)
    ask("GET /pay")
    ask("GET /")
    rules.set({"/pay*": 100}, base=100, emit=True)
    ask("GET /pay")
    boosted, base, follows = watched.entries(3)
    emitted = abi.encode_word(100, emit=True)
    assert [boosted.word, base.word, follows.word] == [emitted | Mode.BOOST, emitted | Mode.BOOST, emitted]


def test_a_call_that_is_sent_is_decided_by_its_operation(watched: Watched, rules: Rules) -> None:
    rules.set({"/pay*": 100}, emit=True)
    watched.capture.want_answers(os.getpid(), watched.row, True)
    pair = RemotePair("client")
    for path in ("/pay", "/", "/payments", "/p"):
        pair.send(f"GET {path} HTTP/1.1\r\n\r\n".encode())
    pair.close()
    counts = watched.counts()
    assert (counts.reverse[EntryKind.HTTP], counts.reverse_kept[EntryKind.HTTP]) == (4, 2)


_paths = st.lists(st.sampled_from(["/", "a", "/a", "/b", "x" * 60]), max_size=4).map(lambda parts: "/" + "".join(parts))
_methods = st.sampled_from(["", "GET", "POST", "OPTIONS"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    patterns=st.dictionaries(
        st.builds(lambda m, path, end: f"{m} {path}{end}".lstrip(), _methods, _paths, st.sampled_from(["", "*"])),
        st.sampled_from([0, 100]),
        max_size=6,
    ),
    base=st.sampled_from([0, 100]),
    asked=st.lists(st.tuples(_methods, _paths), min_size=1, max_size=8),
)
def test_the_first_rule_that_matches_holds(
    rules: Rules, ask: Callable[..., int], patterns: dict[str, float], base: float, asked: list[tuple[str, str]]
) -> None:
    short = {text: rate for text, rate in patterns.items() if len(text) < 110}
    rules.set(short, base)
    rates = {row.number: short.get(text, 0) for text, row in rules.rows.items()}
    for method, path in asked:
        row = find(rules.rules, EntryKind.HTTP, method or "GET", path)
        assert ask(f"{method or 'GET'} {path}") == (base if row is None else rates[row]) // 100


def test_the_map_holds_what_it_has_room_for(watched: Watched, rules: Rules, ask: Callable[..., int]) -> None:
    rules.set({"/pay*": 100})
    row = rules.rows["/pay*"].number
    many = [OperationRule(BOTH, parse_operation(f"/a{n}"), row) for n in range(8193)]
    with pytest.raises(OperationsFull, match="8194"):
        watched.capture.set_operations(SET + 1, many)
    assert watched.capture.set_operations(SET + 1, many[:8191]) == []
    assert [ask(request) for request in ("GET /pay", "GET /a8190", "GET /a8192")] == [1, 0, 0]
    rules.set({"/pay*": 100})
    watched.capture.drop_operations(SET + 1)


def test_rules_that_the_kernel_cannot_apply_are_told(watched: Watched) -> None:
    texts = ["/pay*", "nightly report", "/a/*/b", "/" + "a" * 200]
    rules = [OperationRule(BOTH, parse_operation(text), 2) for text in texts]
    assert watched.capture.set_operations(SET, rules) == rules[1:]
    watched.capture.drop_operations(SET)


@pytest.mark.parametrize("huffman", [False, True])
@pytest.mark.parametrize("grpc", [False, True])
def test_a_request_of_http2_is_decided_by_its_operation(
    watched: Watched, rules: Rules, huffman: bool, grpc: bool
) -> None:
    """By whoever of the two knows its path."""
    rules.set({"POST /shop.Orders/*": 50, "/shop.Carts/Add": 100, "/*/List": 100}, mode=Mode.STRICT, emit=True)
    bits = random.Random(3)
    client, pair = Client(grpc=grpc, huffman=huffman), Pair()
    pair.send(PREFACE)
    expected = []
    for number in range(200):
        path = ("/shop.Orders/Get", "/shop.Carts/Add", "/shop.Carts/AddMore", "/shop.Carts/List")[number % 4]
        trace_id = bits.getrandbits(128) | 1
        pair.send(client.request(traceparent(trace_id, False), path=path))
        if path in ("/shop.Carts/Add", "/shop.Carts/List") or (
            path == "/shop.Orders/Get" and trace_id & abi.RANDOMNESS_MASK >= 1 << 55
        ):
            expected.append((path, trace_id))
    pair.close()
    seen = watched.counts().seen
    assert seen[EntryKind.GRPC if grpc else EntryKind.HTTP] == 200
    words = watched.table.backend

    def word_of(row: int, kind: EntryKind, method: str, path: str) -> int | None:
        assert row == watched.row.number
        found = watched.capture.find_operation(words.read(row)[abi.WORD_OPERATIONS] >> 32, kind, method, path)
        return words.read(found)[kind] if found is not None else None

    def calls() -> list[tuple[str, int]]:
        conversations = Conversations(word_of)
        said = [conversations.read(entry) for entry in watched.emitted()]
        return [(call.path, call.trace_id) for call in said if isinstance(call, Call)]

    eventually(lambda: len(calls()) >= len(expected), "all kept requests")
    assert calls() == expected


def test_what_nobody_watches_is_counted_as_undecided(watched: Watched, rules: Rules) -> None:
    rules.set({"/*/Get": 100})
    client, pair = Client(huffman=True), Pair()
    before = watched.capture.losses()["undecided"]
    pair.send(PREFACE, client.request(), client.request())
    pair.close()
    counts = watched.counts()
    assert (counts.seen[EntryKind.GRPC], counts.kept[EntryKind.GRPC]) == (2, 0)
    assert watched.capture.losses()["undecided"] == before + 2
