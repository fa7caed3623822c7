"""Rules by operation as a hook reads them: what wins for a span, and that nothing in the sheet can hurt."""

from __future__ import annotations

import json
import struct
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spandial import abi
from spandial.abi import EntryKind, Mode, encode_word
from spandial.patterns import parse_operation
from spandial.sheet import OperationRates, encode_block, operations_of

ROW, FIRST = 2, 3  # the process's, the first of the rules'
KEEP, DROP = encode_word(100), encode_word(0)
HTTP = EntryKind.HTTP


class Shared:
    """A table and a sheet as an agent would write them, and the rates of their operations.

    Args:
        rules: patterns, each with its words by entry kind, or one for all kinds.
    """

    def __init__(self, *rules: tuple[str, int | Sequence[int]], set_: int = 1, offset: int = 64) -> None:
        self.table = array("Q", bytes(abi.TABLE_SIZE))
        self.sheet = bytearray(abi.SHEET_SIZE)
        self.row: Any = memoryview(self.table)[ROW * abi.ROW_WORDS : (ROW + 1) * abi.ROW_WORDS]
        self.rates = OperationRates(self.row, self.table, self.sheet)
        self.put(*rules, set_=set_, offset=offset)

    def put(self, *rules: tuple[str, int | Sequence[int]], set_: int, offset: int) -> None:
        for place, (_, words) in enumerate(rules):
            at = (FIRST + place) * abi.ROW_WORDS
            self.table[at : at + 4] = array("Q", [words] * 4 if isinstance(words, int) else words)
        self.write(encode_block((text, FIRST + place) for place, (text, _) in enumerate(rules)), set_, offset)

    def write(self, block: bytes, set_: int = 1, offset: int = 64) -> None:
        block = block[: abi.SHEET_SIZE - offset]
        self.sheet[offset : offset + len(block)] = block
        self.row[abi.WORD_OPERATIONS] = set_ << 32 | offset

    def word(self, name: str, entry: EntryKind = HTTP, **attributes: Any) -> int | None:
        return self.rates.word(entry, name, {key.replace("_", "."): value for key, value in attributes.items()})


def test_the_first_rule_that_matches_wins() -> None:
    shared = Shared(("GET /pay/refund", DROP), ("GET /pay*", KEEP), ("*", encode_word(1)))
    assert [shared.word(name) for name in ("GET /pay/refund", "GET /pay", "GET /pay/1", "POST /pay", "")] == [
        DROP,
        KEEP,
        KEEP,
        encode_word(1),
        encode_word(1),
    ]


def test_where_no_rule_matches_there_is_no_word() -> None:
    assert Shared(("GET /pay*", KEEP)).word("GET /orders") is None
    assert OperationRates([0] * 8, [0] * abi.ROWS * 8, bytes(abi.SHEET_SIZE)).word(HTTP, "GET /pay", None) is None


def test_a_rule_of_other_kinds_leaves_the_operation_to_the_next() -> None:
    shared = Shared(("/a*", [0, KEEP, 0, 0]), ("*", [DROP, 0, DROP, 0]))
    assert [shared.word("/a/b", kind) for kind in EntryKind] == [DROP, KEEP, DROP, None]


def test_a_turn_of_a_rules_dial_is_read_at_once() -> None:
    shared = Shared(("/pay*", DROP))
    for rate in (0, 100, 30):
        shared.table[FIRST * abi.ROW_WORDS + HTTP] = encode_word(rate)
        assert shared.word("/pay") == encode_word(rate)


def test_another_set_is_read_at_once() -> None:
    shared = Shared(("/pay*", KEEP))
    assert shared.word("/pay") == KEEP
    shared.put(("/orders", KEEP), set_=2, offset=4096)
    assert (shared.word("/pay"), shared.word("/orders")) == (None, KEEP)
    shared.row[abi.WORD_OPERATIONS] = 0
    assert shared.word("/orders") is None


HTTP_SPANS: list[tuple[str, dict[str, Any]]] = [
    ("GET /pay/{id}", {"http.request.method": "GET", "http.route": "/pay/{id}", "url.path": "/pay/17"}),
    ("GET /pay/{id}", {"http.method": "GET", "http.target": "/pay/17?page=2"}),
    ("GET", {"http.method": "GET", "http.target": "/pay/17"}),
    ("GET", {"http.request.method": "GET", "url.path": "/pay/17", "url.query": "x=1"}),
    ("HTTP GET", {"http.method": "GET", "http.route": "/pay/17"}),
]


@pytest.mark.parametrize(("name", "attributes"), HTTP_SPANS)
def test_an_http_request_is_known_by_method_and_path_or_route(name: str, attributes: dict[str, Any]) -> None:
    for pattern in ("GET /pay*", "/pay*", "GET *", "*"):
        assert Shared((pattern, KEEP)).rates.word(HTTP, name, attributes) == KEEP
    for pattern in ("POST /pay*", "/orders*", "GET /", "GET /pay", "*?page=2"):
        assert Shared((pattern, KEEP)).rates.word(HTTP, name, attributes) is None


@pytest.mark.parametrize(
    ("name", "attributes"),
    [
        ("shop.Pay/Refund", {"rpc.system": "grpc", "rpc.service": "shop.Pay", "rpc.method": "Refund"}),
        ("/shop.Pay/Refund", {"rpc.system": "grpc"}),
        ("shop.Pay/Refund", {"rpc.system": "grpc"}),
        ("call", {"rpc.system.name": "grpc", "rpc.method": "shop.Pay/Refund"}),
        ("call", {"rpc.system.name": "grpc", "rpc.method": "/shop.Pay/Refund"}),
    ],
)
def test_a_call_is_known_by_its_full_method_name(name: str, attributes: dict[str, Any]) -> None:
    for pattern in ("/shop.Pay/*", "/shop.Pay/Refund"):
        assert Shared((pattern, KEEP)).rates.word(EntryKind.GRPC, name, attributes) == KEEP
    assert Shared(("/shop.Pay/Ask", KEEP)).rates.word(EntryKind.GRPC, name, attributes) is None


@pytest.mark.parametrize("kind", [EntryKind.INTERNAL, EntryKind.DB])
def test_other_spans_are_known_by_their_names_alone(kind: EntryKind) -> None:
    shared = Shared(("nightly*", KEEP), ("/pay*", KEEP))
    assert shared.word("nightly report", kind) == KEEP
    assert shared.word("SELECT", kind, http_route="/pay", http_target="/pay") is None


@pytest.mark.parametrize(
    "attributes",
    [None, {}, {"http.route": None, "http.method": 5, "http.target": b"/pay", "url.path": ["/pay"]}, {"rpc.method": 7}],
)
@pytest.mark.parametrize("name", ["", "GET /pay", None, 17])
def test_attributes_and_names_of_any_type_do_no_harm(attributes: Any, name: Any) -> None:
    shared = Shared(("GET /pay", KEEP))
    for kind in EntryKind:
        assert shared.rates.word(kind, name, attributes) == (KEEP if name == "GET /pay" else None)


globs = st.text("/ab*?", min_size=1, max_size=4).filter(str.strip)
patterns = st.builds(lambda method, path: f"{method} {path}" if method and path[0] in "/*" else path,
                     st.sampled_from(["", "GET", "PUT"]), globs)  # fmt: skip
any_words = st.tuples(*[st.sampled_from([0, KEEP, DROP, encode_word(30, Mode.BOOST)])] * 4)
paths = st.text("/ab", min_size=1, max_size=4)


@given(st.lists(st.tuples(patterns, any_words), max_size=6), st.sampled_from(EntryKind), paths, st.booleans())
def test_it_chooses_as_going_through_the_rules_one_by_one_does(
    rules: list[tuple[str, tuple[int, ...]]], kind: EntryKind, path: str, get: bool
) -> None:
    name = f"GET {path}" if get else path
    asked = parse_operation(name)
    operations = {(asked.method, asked.path)}
    if kind is EntryKind.GRPC:
        operations.add(("", name if name.startswith("/") else f"/{name}"))
    naive = (
        words[kind]
        for text, words in rules
        if words[kind] and any(parse_operation(text).matches(*operation) for operation in operations)
    )
    assert Shared(*rules).word(name, kind) == next(naive, None)


ODD_BLOCKS: list[bytes] = [
    b"",
    b"\xff",
    struct.pack("=I", 0),
    struct.pack("=I", 0xFFFFFFFF),
    struct.pack("=I", abi.SHEET_SIZE) + b"[]",
]
ODD_JSON = ["", "null", "1", "{}", '{"ab": 3}', '"ab"', "[1]", "[[]]", '[["/pay", 3, 4]]', '[["/pay", "3"]]']
ODD_JSON += ['[["/pay", 3.5]]', '[["/pay", 0]]', '[["/pay", 1]]', '[["/pay", -1]]', f'[["/pay", {abi.ROWS}]]']
ODD_JSON += ["[[3, 3]]", '[["", 3]]', '[["\\u0000", 3]]', '[["/pay", 3], ["/pay"]]', "[" * 60_000, '[["/pay", true]]']


@pytest.mark.parametrize("text", ODD_JSON)
def test_a_block_that_says_something_odd_says_nothing(text: str) -> None:
    shared = Shared(("/pay", KEEP))
    shared.write(struct.pack("=I", len(text)) + text.encode(), set_=2)
    assert shared.word("/pay") is None


@pytest.mark.parametrize("block", ODD_BLOCKS)
@pytest.mark.parametrize("offset", [0, 64, abi.SHEET_SIZE - 4, abi.SHEET_SIZE - 1, abi.SHEET_SIZE, 0xFFFFFFFF])
def test_an_odd_length_or_place_says_nothing(block: bytes, offset: int) -> None:
    shared = Shared()
    shared.write(block, set_=2, offset=offset)
    assert shared.word("/pay") is None


@given(st.binary(max_size=200), st.integers(0, 2**64 - 1))
def test_no_bytes_raise(noise: bytes, named: int) -> None:
    shared = Shared()
    shared.sheet[64 : 64 + len(noise)] = noise
    for word in (named, 1 << 32 | 64):
        shared.row[abi.WORD_OPERATIONS] = word
        assert shared.word("/pay") is None


class Changing(Sequence[int]):
    """The words of a row; the agent puts another set in place after so many looks at what names it."""

    def __init__(self, named: int, after: Mapping[int, Callable[[], int]]) -> None:
        self._named, self._after, self.looks = named, after, 0

    def __getitem__(self, index: Any) -> Any:
        assert index == abi.WORD_OPERATIONS
        self.looks += 1
        self._named = self._after.get(self.looks, lambda: self._named)()
        return self._named

    def __len__(self) -> int:
        return abi.ROW_WORDS


@pytest.mark.parametrize("look", [1, 2, 3])
def test_a_set_that_goes_while_it_is_read_is_not_obeyed(look: int) -> None:
    """Whenever the agent puts another in its place and frees what it was made of, the reader sees one or the other."""
    shared = Shared(("/pay", KEEP), offset=64)

    def change() -> int:
        shared.put(("/pay", DROP), set_=2, offset=64)  # in the very same places
        return 2 << 32 | 64

    changing = Changing(1 << 32 | 64, {look: change})
    assert OperationRates(changing, shared.table, shared.sheet).word(HTTP, "/pay", None) == DROP


def test_an_agent_that_never_stops_changing_holds_nobody_up() -> None:
    shared = Shared(("/pay", KEEP))
    changing = Changing(0, {})
    changing._after = {look: lambda: changing.looks << 32 | 64 for look in range(100)}
    assert OperationRates(changing, shared.table, shared.sheet).word(HTTP, "/pay", None) is None
    assert changing.looks < 40


def test_operations_without_number_take_no_more_memory() -> None:
    shared = Shared(("GET /pay*", KEEP), ("*x", DROP))
    for number in range(3000):
        assert shared.word(f"GET /pay/{number}") == KEEP
        assert shared.word("GET", http_method="GET", http_target=f"/{number}?{number}") is None
    assert shared.word("GET", http_method="GET", http_target="/" + 4000 * "x") == DROP
    remembered = shared.rates._known.remembered
    assert len(remembered) <= 512
    assert max(len(str(asked)) for asked in remembered) < 1000


def test_copies_hold_what_was_when_they_were_made() -> None:
    shared = Shared(("/pay", KEEP), ("/orders", DROP))
    shared.row[HTTP] = encode_word(30)
    row, copies = shared.rates.frozen()
    assert copies is not None
    shared.put(("/other", KEEP), set_=2, offset=64)
    shared.table[FIRST * abi.ROW_WORDS + HTTP] = DROP
    assert (row[HTTP], list(row[4:])) == (encode_word(30), [0, 1 << 32 | 64, 0, 0])
    assert [copies.word(HTTP, name, None) for name in ("/pay", "/orders", "/other")] == [KEEP, DROP, None]


def test_copies_of_nothing_say_nothing() -> None:
    row, copies = Shared().rates.frozen()
    assert copies is not None
    assert (list(row[:4]), copies.word(HTTP, "/pay", None)) == ([0] * 4, None)


def test_a_block_holds_any_text() -> None:
    block = encode_block([("GET /größe/*", 3), ('"\\', 4)])
    length = struct.unpack("=I", block[:4])[0]
    assert length == len(block) - 4
    assert json.loads(block[4:]) == [["GET /größe/*", 3], ['"\\', 4]]


def test_what_attributes_name_comes_before_the_spans_name() -> None:
    assert operations_of(HTTP, "GET /pay/{id}", {"http.method": "GET", "http.target": "/pay/17?a=b"}) == [
        ("GET", "/pay/17"),
        ("GET", "/pay/{id}"),
    ]


@pytest.mark.parametrize(
    "attributes",
    [
        {"http_method": "G" * 100_000, "http_target": "/pay"},
        {"http_route": ("x" * 100_000,), "http_target": "/pay"},
        {"http_route": ["x"], "http_target": "/pay"},
    ],
)
def test_nothing_long_that_a_client_says_is_remembered(attributes: dict[str, Any]) -> None:
    shared = Shared(("/pay*", KEEP))
    assert [shared.word("GET", **attributes) for _ in range(2)] == [KEEP, KEEP]
    assert shared.rates._known.remembered == {}


def test_long_methods_of_grpc_are_not_remembered() -> None:
    shared = Shared(("*", KEEP))
    assert shared.word("call", EntryKind.GRPC, rpc_service="s" * 100_000) == KEEP
    assert shared.rates._known.remembered == {}
