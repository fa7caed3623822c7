"""The entries of the longest-prefix map say what the rules say, tried one by one in their order."""

from __future__ import annotations

import functools
import struct

import pytest
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spandial.abi import EntryKind
from spandial.patterns import PATTERN_MAX, parse_operation
from spandial_agent.capture.operation_map import KEY_SIZE, OperationRule, applies, entries, find

HTTP, GRPC, DB = EntryKind.HTTP, EntryKind.GRPC, EntryKind.DB
SET = 7


def rule(text: str, row: int, *kinds: EntryKind) -> OperationRule:
    return OperationRule(kinds or (HTTP, GRPC), parse_operation(text), row)


_HUFFMAN = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)


def look_up(
    table: dict[bytes, int], method: str, path: str, *, huffman: bool = False, operation_set: int = SET
) -> int | None:
    """As the kernel does: with the method, and where nothing is found, without one."""
    laid = path.encode()[:120].ljust(120, b"\0")
    if huffman:
        laid = _HUFFMAN.encode(path.encode())[:120].ljust(120, b"\xff")
    for asked in (method, ""):
        key = _bits(struct.pack("=IB7s", operation_set, HTTP | 0x80 * huffman, asked.encode()) + laid)
        found = {}
        for stored, row in table.items():
            assert len(stored) == KEY_SIZE
            length = struct.unpack_from("=I", stored)[0]
            if _bits(stored[4:])[:length] == key[:length]:
                found[length] = row
        if found:
            return found[max(found)]
    return None


@functools.cache
def _bits(data: bytes) -> str:
    return "".join(f"{byte:08b}" for byte in data)


pieces = st.sampled_from(["/", "/a", "/b", "a", "ab", "/pay", "?", "é", "x" * 58])
paths = st.lists(pieces, max_size=5).map(lambda parts: "/" + "".join(parts))
methods = st.sampled_from(["", "", "GET", "POST", "OPTIONS", "PROPFIND"])
patterns = st.builds(
    lambda method, path, end: f"{method} {path}{end}" if method else path + end,
    methods,
    paths.map(lambda path: path.replace("?", "")),
    st.sampled_from(["", "*"]),
)


@settings(max_examples=600)
@given(st.lists(patterns, max_size=8), st.lists(st.tuples(methods, paths), min_size=1, max_size=8), st.booleans())
@example(["GET *", "/pay"], [("GET", "/"), ("POST", "/")], False)
@example(["/pay", "*", "/pays"], [("GET", "/pay"), ("GET", "/pays"), ("GET", "/")], True)
@example(["/pay*", "GET /pay/card*"], [("GET", "/pay/card/1")], False)
@example(["GET /*", "/pay"], [("GET", "/pay"), ("POST", "/pay")], True)
@example(["/pay", "/pay*", "POST /p*"], [("POST", "/pay"), ("POST", "/pays"), ("GET", "/pays")], True)
def test_the_first_rule_that_matches_wins(texts: list[str], asked: list[tuple[str, str]], huffman: bool) -> None:
    rules = [rule(text, row) for row, text in enumerate(texts, 2)]
    table = entries(SET, rules)
    applicable = [rule for rule in rules if applies(rule.pattern)]
    for method, path in asked:
        expected = find(applicable, HTTP, method, path.partition("?")[0])
        assert look_up(table, method, path, huffman=huffman) == expected


def test_an_exact_path_is_no_beginning() -> None:
    table = entries(SET, [rule("/pay", 2), rule("GET /ship*", 3)])
    assert [look_up(table, "GET", path) for path in ("/pay", "/pay/", "/pa", "/ship", "/shipping", "/shi")] == [
        *(2, None, None),
        *(3, 3, None),
    ]
    assert look_up(table, "POST", "/ship") is None


def test_a_path_as_long_as_the_key_is_told_from_a_longer_one() -> None:
    longest = "/" + "a" * 118
    table = entries(SET, [rule(longest, 2), rule(longest + "a", 3), rule(longest + "a*", 4), rule(longest + "aa*", 5)])
    assert look_up(table, "GET", longest) == 2
    assert look_up(table, "GET", longest + "a") == look_up(table, "GET", longest + "abc") == 4
    assert [applies(parse_operation(longest + end)) for end in ("", "a", "*", "a*", "aa*")] == [
        *(True, False),
        *(True, True, False),
    ]


@pytest.mark.parametrize("text", ["nightly report", "nightly*", "/a/*/b", "/a?", "/[ab]*", "PROPFIND /a"])
def test_a_rule_that_is_about_no_beginning_of_a_path_is_left_out(text: str) -> None:
    assert not applies(parse_operation(text))
    assert entries(SET, [rule(text, 2)]) == {}


def test_rules_for_other_kinds_are_left_out() -> None:
    table = entries(SET, [rule("/pay*", 2, DB), rule("/pay*", 3, HTTP, DB)])
    assert look_up(table, "GET", "/pay") == 3


def test_another_set_is_another_set() -> None:
    table = entries(SET, [rule("/pay*", 2)]) | entries(SET + 1, [rule("/pay*", 3)])
    assert look_up(table, "GET", "/pay") == 2
    assert look_up(table, "GET", "/pay", operation_set=SET + 1) == 3
    assert look_up(table, "GET", "/pay", operation_set=SET + 2) is None


def test_a_rule_that_never_wins_takes_no_room() -> None:
    rules = [rule("/*", 2), *(rule(f"/{n}*", 3 + n) for n in range(50))]
    assert len(entries(SET, rules)) == len(entries(SET, rules[:1]))


@settings(max_examples=300)
@given(paths, paths)
def test_a_huffman_coded_path_is_told_from_every_other(one: str, other: str) -> None:
    one = one[:PATTERN_MAX]
    table = entries(SET, [rule(one.replace("?", ""), 2)])
    if applies(parse_operation(one.replace("?", ""))):
        found = look_up(table, "GET", other, huffman=True)
        assert (found == 2) == (other.partition("?")[0] == one.replace("?", ""))
