"""Spans of time as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spandial_api.durations import format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10m", 600), ("1h30m", 5400), ("2d", 172_800), (" 1.5h ", 5400), ("1s", 1), ("366d", 31_622_400)],
)
def test_a_duration_is_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", " ", "10", "m", "0s", "0.5s", "-1s", "1e3s", "1M", "30m1h", "367d", "1 h", "٣m"])
def test_anything_else_is_refused_with_what_was_received(text: str) -> None:
    with pytest.raises(ValueError, match="such as 90s, 10m or 1h30m") as refused:
        parse_duration(text)
    assert repr(text) in str(refused.value)


@given(st.text(max_size=30) | st.from_regex(r"[0-9.]{0,12}[dhms]{0,2}[0-9.]{0,5}[dhms]?", fullmatch=True))
def test_no_text_makes_it_raise_anything_else(text: str) -> None:
    try:
        assert 1 <= parse_duration(text) <= 366 * 86_400
    except ValueError:
        pass


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (-5, "0s"), (59.9, "59s"), (60, "1m"), (3599, "59m59s"), (5400, "1h30m"), (90_061, "1d1h")],
)
def test_a_duration_is_shown_by_its_two_greatest_units(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.integers(1, 366 * 86_400))
def test_what_is_shown_is_no_longer_than_it_is_and_nearly_as_long(seconds: int) -> None:
    shown = parse_duration(format_duration(seconds))
    assert shown <= seconds < shown + 3600
    assert seconds >= 86_400 or seconds < shown + 60
