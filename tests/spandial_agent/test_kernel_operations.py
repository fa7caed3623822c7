"""The entries of the longest-prefix map say what the rules say, tried one by one in their order."""

from __future__ import annotations

import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spandial.abi import EntryKind
from spandial.operations import parse_operation
from spandial_agent.kernel.operations import KEY_SIZE, OperationRule, applies, entries, find

HTTP, GRPC, DB = EntryKind.HTTP, EntryKind.GRPC, EntryKind.DB
SET = 7


def rule(text: str, row: int, *kinds: EntryKind) -> OperationRule:
    return OperationRule(kinds or (HTTP, GRPC), parse_operation(text), row)


def look_up(table: dict[bytes, int], method: str, path: str, operation_set: int = SET) -> int | None:
    """As the kernel does: with the method, and where nothing is found, without one."""
    for asked in (method, ""):
        key = struct.pack("=IB7s", operation_set, HTTP, asked.encode()) + path.encode()[:120].ljust(120, b"\0")
        found = {}
        for stored, row in table.items():
            length, unused = divmod(struct.unpack_from("=I", stored)[0], 8)
            assert len(stored) == KEY_SIZE
            assert not unused
            if stored[4 : 4 + length] == key[:length]:
                found[length] = row
        if found:
            return found[max(found)]
    return None


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
@given(st.lists(patterns, max_size=8), st.lists(st.tuples(methods, paths), min_size=1, max_size=8))
@example(["/pay*", "GET /pay/card*"], [("GET", "/pay/card/1")])
@example(["GET *", "/pay"], [("GET", "/"), ("POST", "/")])
@example(["/pay", "*", "/pays"], [("GET", "/pay"), ("GET", "/pays"), ("GET", "/")])
@example(["GET /*", "/pay"], [("GET", "/pay"), ("POST", "/pay")])
@example(["/pay", "/pay*", "POST /p*"], [("POST", "/pay"), ("POST", "/pays"), ("GET", "/pays")])
def test_the_first_rule_that_matches_wins(texts: list[str], asked: list[tuple[str, str]]) -> None:
    rules = [rule(text, row) for row, text in enumerate(texts, 2)]
    table = entries(SET, rules)
    applicable = [rule for rule in rules if applies(rule.pattern)]
    for method, path in asked:
        path = path.replace("?", "")
        if len(path.encode()) < 120:
            assert look_up(table, method, path) == find(applicable, HTTP, method, path)


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
    assert look_up(table, "GET", "/pay", SET + 1) == 3
    assert look_up(table, "GET", "/pay", SET + 2) is None


def test_a_rule_that_never_wins_takes_no_room() -> None:
    assert len(entries(SET, [rule("/*", 2), *(rule(f"/{n}*", 3 + n) for n in range(50))])) == 1
