"""Rules by operation in the kernel: what it can read is decided by the rule for its path, the rest by user space."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import random
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from hpack import HeaderTuple, NeverIndexedHeaderTuple
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spandial import abi
from spandial.abi import EntryKind, Flag, Mode, RecordFlag
from spandial.patterns import parse_operation
from spandial_agent.capture.operation_map import OperationRule, find
from spandial_agent.errors import OperationsFull
from spandial_agent.kernel.libbpf import Map
from spandial_agent.records.conversations import Call, Conversations
from spandial_agent.table.rates import Row
from tests.agent_process import eventually
from tests.in_kernel.conftest import Watched
from tests.in_kernel.remote import RemotePair
from tests.in_kernel.test_capture import traced
from tests.in_kernel.test_databases import Pair
from tests.in_kernel.test_http2 import END_HEADERS, END_STREAM, HEADERS, PREFACE, Client, frame, traceparent

pytestmark = pytest.mark.kernel

SET = 0xABCDEF01
SYS_SETRESUID = {"x86_64": 117, "aarch64": 147}[platform.machine()]  # of one thread; libc's function is for all of them
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
        self._watched.set(abi.encode_word(base, mode, emit=emit) | Flag.OPERATIONS, abi.encode_word(0))
        self._table.backend.write(self._watched.row.number, [SET << 32] * 8, 1 << abi.WORD_OPERATIONS)

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
    many = [OperationRule(BOTH, parse_operation(f"/a{n:04}*"), row) for n in range(10_000)]
    with pytest.raises(OperationsFull, match="of the kernel's map"):
        watched.capture.set_operations(SET + 1, many)
    assert watched.capture.set_operations(SET + 1, many[:8000]) == []
    assert [ask(request) for request in ("GET /pay", "GET /a7999")] == [1, 0]
    watched.table.backend.write(watched.row.number, [SET + 1 << 32] * 8, 1 << abi.WORD_OPERATIONS)
    assert [ask(request) for request in ("GET /pay", "GET /a7999", "GET /a8000")] == [0, 1, 0]
    watched.capture.drop_operations(SET + 1)


class RunsOut(Map):
    """A map that takes so many entries more."""

    room = 1

    def __setitem__(self, key: int | bytes, value: bytes) -> None:
        if not self.room:
            raise OSError(errno.ENOMEM, "update of the key: Cannot allocate memory")
        self.room -= 1
        super().__setitem__(key, value)


def test_a_set_for_which_the_memory_runs_out_leaves_nothing_behind(
    watched: Watched, rules: Rules, ask: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    rules.set({"/pay*": 0}, base=100)
    row = rules.rows["/pay*"].number
    map_ = RunsOut(watched.capture._operations.fd, 4)
    monkeypatch.setattr(watched.capture, "_operations", map_)
    more = [OperationRule([EntryKind.HTTP], parse_operation(text), row) for text in ("/orders*", "/carts*")]
    with pytest.raises(OSError, match="memory"):
        watched.capture.set_operations(SET + 1, more)
    watched.table.backend.write(watched.row.number, [SET + 1 << 32] * 8, 1 << abi.WORD_OPERATIONS)
    assert [ask(request) for request in ("GET /orders", "GET /carts")] == [1, 1]
    map_.room = 1 << 16
    watched.capture.set_operations(SET + 1, more)
    assert [ask(request) for request in ("GET /orders", "GET /carts")] == [0, 0]
    watched.capture.drop_operations(SET + 1)


def test_rules_that_the_kernel_cannot_apply_are_told(watched: Watched) -> None:
    texts = ["/pay*", "nightly report", "/a/*/b", "/" + "a" * 200]
    rules = [OperationRule(BOTH, parse_operation(text), 2) for text in texts]
    assert watched.capture.set_operations(SET, rules) == rules[1:]
    watched.capture.drop_operations(SET)


KNOWN = {"POST /shop.Orders/*": 50, "/shop.Carts/Add": 100, "PUT /*": 100, "/": 100, "/shop.Carts/A*": 0}


def read_all(watched: Watched) -> list[Call]:
    """What was kept, also by user space."""
    words = watched.table.backend

    def word_of(row: int, kind: EntryKind, method: str, path: str) -> int | None:
        assert row == watched.row.number
        found = watched.capture.find_operation(words.read(row)[abi.WORD_OPERATIONS] >> 32, kind, method, path)
        return words.read(found)[kind] if found is not None else None

    conversations = Conversations(word_of)
    return [call for entry in watched.emitted() if isinstance(call := conversations.read(entry), Call)]


@pytest.mark.parametrize("huffman", [False, True])
@pytest.mark.parametrize("grpc", [False, True])
def test_a_request_of_http2_is_decided_by_its_operation(
    watched: Watched, rules: Rules, huffman: bool, grpc: bool
) -> None:
    """Also where its path is an entry of the connection's table."""
    rules.set(KNOWN, mode=Mode.STRICT, emit=True)
    bits = random.Random(3)
    client, pair = Client(grpc=grpc, huffman=huffman), Pair()
    pair.send(PREFACE)
    expected = []
    for number in range(200):
        path = ("/shop.Orders/Get", "/shop.Carts/Add", "/shop.Carts/AddMore", "/shop.Carts/Add?x=1", "/")[number % 5]
        trace_id = bits.getrandbits(128) | 1
        pair.send(client.request(traceparent(trace_id, False), path=path))
        if path in ("/shop.Carts/Add", "/shop.Carts/Add?x=1", "/") or (
            path == "/shop.Orders/Get" and trace_id & abi.RANDOMNESS_MASK >= 1 << 55
        ):
            expected.append((path.partition("?")[0], trace_id))
    pair.close()
    counts, kind = watched.counts(), EntryKind.GRPC if grpc else EntryKind.HTTP
    assert (counts.seen[kind], counts.kept[kind]) == (200, len(expected))
    eventually(lambda: len(read_all(watched)) >= len(expected), "all kept requests")
    assert [(call.path, call.trace_id) for call in read_all(watched)] == expected
    assert not any(entry.flags & RecordFlag.UNDECIDED for entry in watched.emitted())


def test_a_method_is_known_by_its_entry_of_the_table(watched: Watched, rules: Rules) -> None:
    rules.set({"PUT /*": 100, "DELETE /shop.Carts/*": 100, "OPTIONS *": 100})
    before = watched.capture.losses()["undecided"]
    client, pair = Client(), Pair()
    pair.send(PREFACE)
    for method in ("PUT", "DELETE", "GET", "OPTIONS", "PATCH", "POST") * 10:
        pair.send(client.request(method=method))
    pair.close()
    assert watched.counts().kept[EntryKind.GRPC] == 20
    assert watched.capture.losses()["undecided"] == before


def test_behind_a_block_with_more_fields_than_are_looked_at_no_path_is_mistaken(watched: Watched, rules: Rules) -> None:
    rules.set({"/a": 100})
    before = watched.capture.losses()["undecided"]
    client, pair = Client(grpc=False), Pair()
    pair.send(PREFACE, *(client.request(path=f"/{path}") for path in "abcdefgh"))
    assert watched.kept() == 1
    client.stream += 2
    fields = [HeaderTuple(*field) for field in ((":method", "GET"), (":path", "/"), (":scheme", "http"))]
    fields += [NeverIndexedHeaderTuple("x", "")] * 120 + [HeaderTuple("y", str(n)) for n in range(3)]
    pair.send(frame(HEADERS, END_HEADERS | END_STREAM, client.stream, client.encoder.encode(fields)))
    pair.send(*(client.request(path=f"/{path}") for path in "adh"))
    pair.close()
    assert watched.kept() == 1
    assert watched.capture.losses()["undecided"] == before + 4


def test_the_calls_of_grpc_are_decided_without_user_space(watched: Watched, rules: Rules) -> None:
    """As its C core writes them: the path's name and text plain, and later by their entry of the table."""

    class Anything(grpc.GenericRpcHandler):
        def service(self, _call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
            return grpc.unary_unary_rpc_method_handler(lambda request, _context: request)

    rules.set({"/shop.Orders/*": 100, "/shop.Carts/Add": 100, "GET *": 100})
    before = watched.capture.losses()["undecided"]
    server = grpc.server(ThreadPoolExecutor(2), handlers=[Anything()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        for call in (
            "shop.Orders/Get",
            "shop.Orders/List",
            "shop.Carts/Add",
            "shop.Carts/AddAll",
            "shop.Order/Get",
        ) * 20:
            channel.unary_unary(f"/{call}")(b"hello")
    server.stop(None).wait()
    counts = watched.counts()
    assert (counts.seen[EntryKind.GRPC], counts.kept[EntryKind.GRPC]) == (100, 60)
    assert watched.capture.losses()["undecided"] == before


def test_what_only_user_space_knows_it_decides(watched: Watched, rules: Rules) -> None:
    """Here a method, and a path that came before there were rules."""
    watched.set(abi.encode_word(0, emit=True))
    client, pair = Client(huffman=True), Pair()
    pair.send(PREFACE, client.request(path="/shop.Carts/Add"), client.request(path="/shop.Carts/All"))
    rules.set({"/shop.Carts/Add": 100, "PUT /*": 100}, emit=True)
    pair.send(client.request(path="/shop.Carts/Add"), client.request(path="/shop.Carts/All"))
    pair.send(client.request(path="/1", method="PUT"), client.request(path="/2", method="PATCH"))
    pair.close()
    eventually(lambda: len(read_all(watched)) >= 2, "two requests")
    assert [(call.method, call.path) for call in read_all(watched)] == [("POST", "/shop.Carts/Add"), ("PUT", "/1")]
    assert sum(bool(entry.flags & RecordFlag.UNDECIDED) for entry in watched.emitted()) == 4
    assert watched.counts().kept[EntryKind.GRPC] == 0


def test_what_nobody_watches_is_counted_as_undecided(watched: Watched, rules: Rules) -> None:
    rules.set(KNOWN)
    client, pair = Client(huffman=True), Pair()
    before = watched.capture.losses()["undecided"]
    pair.send(PREFACE, *(client.request(method="PUT") for _ in range(3)), client.request(path="/"))
    pair.close()
    counts = watched.counts()
    assert (counts.seen[EntryKind.GRPC], counts.kept[EntryKind.GRPC]) == (4, 1)
    assert watched.capture.losses()["undecided"] == before + 3


def test_what_nobody_knows_obeys_the_word_for_all_other_operations(watched: Watched, rules: Rules) -> None:
    """Where nobody in user space decides: it is counted, and not dropped."""
    watched.set(abi.encode_word(0))
    client, pair = Client(), Pair()
    before = watched.capture.losses()["undecided"]
    pair.send(PREFACE, client.request(path="/shop.Carts/Add"))
    rules.set({"/shop.Orders/*": 0}, base=100)
    pair.send(*(client.request(path="/shop.Carts/Add") for _ in range(20)))
    pair.send(client.request(path="/shop.Orders/Get"))
    rules.set({"/shop.Orders/*": 100}, base=0)
    pair.send(*(client.request(path="/shop.Carts/Add") for _ in range(20)))
    pair.close()
    assert watched.counts().kept[EntryKind.GRPC] == 20
    assert watched.capture.losses()["undecided"] == before + 40


def as_user(uid: int, work: Callable[[], None]) -> None:
    """In a thread of its own, which is another user's; root's rights it keeps, and its process stays the target."""

    def run() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.syscall(SYS_SETRESUID, uid, -1, -1) == 0, os.strerror(ctypes.get_errno())
        work()

    with ThreadPoolExecutor(1) as thread:
        thread.submit(run).result()


def test_one_users_header_tables_take_nobody_elses_paths(watched: Watched, rules: Rules) -> None:
    """However many paths he has, each used again, an honest connection's are known, also his who comes afterwards."""
    rules.set({"/shop.Orders/*": 100, "/hostile/*": 0, "PUT /shop.Carts/*": 100})
    honest, honest_pair, hostile, hostile_pair = Client(), Pair(), Client(grpc=False), Pair()
    honest_pair.send(PREFACE, honest.request(), honest.request(method="PUT", path="/shop.Carts/Add"))

    def attack() -> None:
        for number in range(6000):
            path = f"/hostile/{number}"
            hostile_pair.send(hostile.request(path=path), hostile.request(path=path))

    before = watched.capture.losses()["undecided"]
    hostile_pair.send(PREFACE)
    as_user(64321, attack)
    kept = watched.counts().kept[EntryKind.GRPC]
    honest_pair.send(*(honest.request() for _ in range(20)), honest.request(path="/shop.Carts/Add"))
    honest_pair.send(*(honest.request(method="PUT", path="/shop.Carts/Add") for _ in range(20)))
    assert watched.counts().kept[EntryKind.GRPC] == kept + 40
    late, late_pair = Client(), Pair()
    late_pair.send(PREFACE)
    as_user(64400, lambda: late_pair.send(*(late.request() for _ in range(20))))
    assert watched.counts().kept[EntryKind.GRPC] == kept + 60
    assert watched.capture.losses()["undecided"] == before
    for pair in (honest_pair, hostile_pair, late_pair):
        pair.close()


def test_users_for_whom_no_map_is_left_share_one(watched: Watched, rules: Rules) -> None:
    rules.set({"/shop.Orders/*": 100})
    before = watched.capture.losses()["undecided"], watched.counts().kept[EntryKind.GRPC]
    for uid in range(64500, 64540):
        client, pair = Client(), Pair()
        pair.send(PREFACE)
        as_user(uid, lambda pair=pair, client=client: pair.send(client.request(), client.request()))
        pair.close()
    assert (watched.capture.losses()["undecided"], watched.counts().kept[EntryKind.GRPC]) == (before[0], before[1] + 80)


_asked = st.tuples(
    st.sampled_from(
        ["/", "/index.html", "/a", "/a?q", "/a/b", "/a/b/c", "/d", "/" + "e" * 200, "/a" + "f" * 200, "/é"]
    ),
    st.sampled_from(["GET", "POST", "POST", "PUT"]),
    st.booleans(),  # Huffman-coded
    st.sampled_from([None, None, None, 0, 64, 200, 4096]),  # a new size of the table
    st.sampled_from([0, 0, 0, 0, 1500]),  # bytes of a header that is too long to be seen
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=st.lists(_asked, min_size=1, max_size=25))
def test_what_the_kernel_decides_of_http2_is_right(
    watched: Watched, rules: Rules, asked: list[tuple[Any, ...]]
) -> None:
    """Whatever came into the table, and went."""
    rules.set({"/a": 100, "GET /a/*": 100, "/a*": 0, "/é*": 100, "/" + "e" * 100 + "*": 100, "/": 100, "/i*": 100})
    rates = {
        row.number: word >> 8 == 0 for row in rules.rows.values() if (word := watched.table.backend.read(row.number)[1])
    }
    client, pair = Client(grpc=False), Pair()
    pair.send(PREFACE)
    for path, method, huffman, size, length in asked:
        client.huffman = huffman
        if size is not None:
            client.encoder.header_table_size = size
        before = watched.kept(), watched.capture.losses()["undecided"]
        long = [("x-long", "y" * length)] if length else []
        pair.send(client.request(*long, path=path, method=method))
        if watched.capture.losses()["undecided"] == before[1]:
            row = find(rules.rules, EntryKind.HTTP, method, path.partition("?")[0])
            assert watched.kept() - before[0] == (row is not None and rates[row]), (path, method)
    pair.close()
