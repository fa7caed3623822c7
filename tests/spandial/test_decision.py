"""The decision, a person's rate, and the tracestate's member `ot`."""

from __future__ import annotations

import contextlib
import json
import math
import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry.sdk.trace._sampling_experimental._trace_state import serialize_th

from spandial.abi import MAX_THRESHOLD, RANDOMNESS_MASK, Flag, Mode, Parent, encode_word
from spandial.decision import (
    choose_word,
    decide,
    format_threshold,
    parse_randomness,
    parse_rate,
    parse_threshold,
    without_threshold,
)

VECTORS = Path(__file__).parent.parent / "vectors" / "decision.json"
HALF = MAX_THRESHOLD // 2

# What becomes of an entry below the threshold and at it.
HIT, KEEP, DROP = (False, True), (True, True), (False, False)
# Columns: no parent, remote kept, remote dropped, local kept, local dropped.
TABLE = {
    (Mode.FOLLOW, False): (HIT, KEEP, DROP, KEEP, DROP),
    (Mode.BOOST, False): (HIT, KEEP, HIT, KEEP, DROP),
    (Mode.STRICT, False): (HIT, HIT, HIT, KEEP, DROP),
    (Mode.FOLLOW, True): (HIT, HIT, DROP, HIT, DROP),
    (Mode.BOOST, True): (HIT, HIT, HIT, HIT, DROP),
    (Mode.STRICT, True): (HIT, HIT, HIT, HIT, DROP),
}

randomness = st.integers(0, RANDOMNESS_MASK)
thresholds = st.integers(0, RANDOMNESS_MASK)
words = st.builds(lambda threshold, flags: threshold << 8 | flags, thresholds, st.integers(0, 255))
members = st.lists(st.from_regex(r"(th|rv|xrv|p|t|)(:[0-9a-fA-F+_ ]{0,16})?", fullmatch=True), max_size=5).map(";".join)


@pytest.mark.parametrize(("mode", "thin"), TABLE)
@pytest.mark.parametrize("parent", Parent)
def test_every_row_of_the_table_decides_below_and_at_the_threshold(mode: Mode, thin: bool, parent: Parent) -> None:
    word = encode_word(50, mode, thin=thin)
    below, at = TABLE[mode, thin][parent]
    assert decide(word, HALF - 1, parent) is below
    assert decide(word, HALF, parent) is at
    assert decide(word, HALF + 1, parent) is at
    assert decide(word, 0, parent) is below
    assert decide(word, RANDOMNESS_MASK, parent) is at


@pytest.mark.parametrize(("mode", "thin"), TABLE)
@pytest.mark.parametrize("parent", Parent)
def test_rate_zero_never_hits_whatever_the_threshold_says(mode: Mode, thin: bool, parent: Parent) -> None:
    never = TABLE[mode, thin][parent][0]
    assert decide(encode_word(0, mode, thin=thin), RANDOMNESS_MASK, parent) is never
    assert decide(encode_word(100, mode, thin=thin) | Flag.NEVER, RANDOMNESS_MASK, parent) is never


@given(words, randomness)
def test_a_word_that_is_not_valid_keeps_nothing(word: int, random: int) -> None:
    assert not any(decide(word & ~Flag.VALID, random, parent) for parent in Parent)


@given(words, randomness)
def test_only_the_threshold_the_mode_thin_never_and_valid_decide(word: int, random: int) -> None:
    for parent in Parent:
        assert decide(word, random, parent) == decide(word ^ (Flag.EMIT | 0x30), random, parent)


@given(words, randomness)
def test_the_unused_mode_decides_as_follow(word: int, random: int) -> None:
    follow = word & ~3
    for parent in Parent:
        assert decide(follow | 3, random, parent) == decide(follow, random, parent)


@given(thresholds, randomness, st.sampled_from(Mode), st.booleans())
def test_whatever_is_kept_at_a_rate_is_kept_at_every_higher_rate(
    threshold: int, random: int, mode: Mode, thin: bool
) -> None:
    flags = Flag.VALID | mode | (Flag.THIN if thin else 0)
    for parent in Parent:
        if decide(threshold << 8 | flags, random, parent):
            assert decide(threshold // 2 << 8 | flags, random, parent)


def test_the_shared_vectors_hold() -> None:
    vectors = json.loads(VECTORS.read_text())
    assert {vector["parent"] for vector in vectors} == {parent.name for parent in Parent}
    for vector in vectors:
        kept = decide(int(vector["word"], 16), int(vector["randomness"], 16), Parent[vector["parent"]])
        assert kept is vector["keep"], vector


def test_a_row_obeys_its_own_word_until_the_lease_ends_and_the_fallback_from_then_on() -> None:
    assert choose_word(1, 2, lease_deadline_ns=10, now_ns=9) == 1
    assert choose_word(1, 2, lease_deadline_ns=10, now_ns=10) == 2
    assert choose_word(1, 2, lease_deadline_ns=10, now_ns=11) == 2
    assert choose_word(1, 2, lease_deadline_ns=0, now_ns=0) == 2


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("30", 30),
        ("0.1", 0.1),
        ("30%", 30),
        (" 30 % ", 30),
        ("\t7\n", 7),
        ("0", 0),
        ("100", 100),
        ("100.000%", 100),
        ("5.", 5),
        (".5", 0.5),
        ("1e-3", 0.001),
        ("1E2", 100),
        ("1e-400", 0),
        (30, 30),
        (0.1, 0.1),
        (5e-324, 5e-324),
    ],
)
def test_a_rate_is_read_as_a_person_writes_it(text: str | float, rate: float) -> None:
    assert parse_rate(text) == rate


OUT_OF_RANGE = ["nan", "NaN", "inf", "-inf", "Infinity", "-1", "-0.1", "101", "100.1", "1e400", "1e9999"]
NO_NUMBER = ["", " ", "%", "abc", "30%%", "%30", "3 0", "30 percent", "1_0", "0x1e", "+5", "1,5", "1e", ".", True]


@pytest.mark.parametrize("text", [*OUT_OF_RANGE, *NO_NUMBER, math.nan, math.inf, -1, 100.5])
def test_what_is_no_rate_is_refused_with_what_was_received(text: str | float) -> None:
    with pytest.raises(ValueError, match=re.escape(f"received {text!r}")):
        parse_rate(text)


@given(st.text(max_size=8))
def test_no_text_makes_the_parser_fail_otherwise(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert 0 <= parse_rate(text) <= 100


@given(st.floats(0, 100))
def test_every_rate_is_read_as_python_prints_it(rate: float) -> None:
    assert parse_rate(repr(rate)) == rate
    assert parse_rate(f"{rate!r} %") == rate


@given(thresholds)
@example(0)
@example(RANDOMNESS_MASK)
@example(1 << 52)
def test_a_threshold_is_written_as_the_sdk_writes_it_and_read_back(threshold: int) -> None:
    assert format_threshold(threshold) == "th:" + serialize_th(threshold)
    assert parse_threshold(format_threshold(threshold)) == threshold


@given(randomness, st.sampled_from(["", "th:8;", "p:1;xrv:1;"]), st.sampled_from(["", ";th:8", ";x:rv:2"]))
def test_randomness_is_read_wherever_it_stands(random: int, before: str, after: str) -> None:
    assert parse_randomness(f"{before}rv:{random:014x}{after}") == random


WRONG_LENGTH = ["rv:", "rv:1", "rv:0123456789abc", "rv:0123456789abc;", "rv:0123456789abcdef"]
WRONG_DIGITS = ["0123456789ABCD", "0123456789abcg", "+123456789abcd", " 123456789abcd", "0_23456789abcd"]
OTHER_MEMBERS = ["", "th:8", "xrv:0123456789abcd", "x:rv:0123456789abcd", "rv=0123456789abcd"]


@pytest.mark.parametrize(
    "ot", [*WRONG_LENGTH, *(f"rv:{digits}" for digits in WRONG_DIGITS), *OTHER_MEMBERS, "rv:bad;rv:0123456789abcd"]
)
def test_randomness_that_is_malformed_or_absent_is_none(ot: str) -> None:
    assert parse_randomness(ot) is None


@pytest.mark.parametrize(
    ("ot", "threshold"),
    [
        ("th:0", 0),
        ("th:8", HALF),
        ("th:c", 0xC0000000000000),
        ("th:00000000000001", 1),
        ("rv:0123456789abcd;th:e66666666666", 0xE6666666666600),
        ("th:8;th:c", HALF),
    ],
)
def test_a_threshold_is_read_with_its_zeros_put_back(ot: str, threshold: int) -> None:
    assert parse_threshold(ot) == threshold


@pytest.mark.parametrize(
    "ot", ["", "th:", "th", "rv:0123456789abcd", "th:A", "th:+8", "th: 8", "th:8_0", "th:0x8", "th:012345678901234"]
)
def test_a_threshold_that_is_malformed_or_absent_is_none(ot: str) -> None:
    assert parse_threshold(ot) is None


@given(members)
def test_the_first_of_several_members_counts_and_only_whole_members_do(ot: str) -> None:
    parts = ot.split(";")
    rv = next((part[3:] for part in parts if part.startswith("rv:")), "")
    th = next((part[3:] for part in parts if part.startswith("th:")), "")
    assert parse_randomness(ot) == (int(rv, 16) if re.fullmatch("[0-9a-f]{14}", rv) else None)
    assert parse_threshold(ot) == (int(th.ljust(14, "0"), 16) if re.fullmatch("[0-9a-f]{1,14}", th) else None)


@given(members)
def test_without_its_threshold_every_other_member_stays(ot: str) -> None:
    rest = without_threshold(ot)
    assert parse_threshold(rest) is None
    assert rest == ";".join(part for part in ot.split(";") if not part.startswith("th:"))


@pytest.mark.parametrize("rest", ["", "rv:0123456789abcd", "p:th:1", "xth:1"])
def test_a_leading_threshold_is_taken_away_with_its_semicolon(rest: str) -> None:
    assert without_threshold(f"th:8;{rest}" if rest else "th:8") == rest
