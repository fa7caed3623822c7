"""How often somebody may do something."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from spandial_api.write_limit import RateLimit

_steps = st.lists(st.floats(0, 3), max_size=80)
_rates = st.floats(0.01, 1000)
_bursts = st.floats(1, 50)


@given(_rates, _bursts, _steps)
def test_no_span_of_time_has_more_than_a_burst_and_what_fills_in_it(
    rate: float, burst: float, steps: list[float]
) -> None:
    limit, now, taken = RateLimit(rate, burst), 0.0, []
    for step in steps:
        now += step
        if limit.take("ci", now) == 0:
            taken.append(now)
    for first, begin in enumerate(taken):
        for last in range(first, len(taken)):
            assert last - first + 1 <= burst + rate * (taken[last] - begin) + 1e-6


@given(_rates, _bursts, _steps)
def test_who_waits_as_long_as_he_is_told_is_let_through(rate: float, burst: float, steps: list[float]) -> None:
    limit, now = RateLimit(rate, burst), 0.0
    for step in steps:
        now += step
        wait = limit.take("ci", now)
        assert wait >= 0
        if wait:
            now += wait * (1 + 1e-9) + 1e-9
            assert limit.take("ci", now) == 0


@given(_bursts)
def test_a_burst_goes_through_at_once(burst: float) -> None:
    limit = RateLimit(1, burst)
    assert [limit.take("ci", 5.0) for _ in range(int(burst))] == [0.0] * int(burst)
    assert limit.take("ci", 5.0) > 0


def test_everybody_has_a_bucket_of_his_own() -> None:
    limit = RateLimit(1, 1)
    assert [limit.take(name, 0.0) for name in ("one", "other", "one")] == [0.0, 0.0, 1.0]


def test_without_a_rate_there_is_no_limit_and_nothing_to_remember() -> None:
    limit = RateLimit(0, 1)
    assert [limit.take("ci", 0.0) for _ in range(1000)] == [0.0] * 1000
    assert len(limit) == 0


@given(st.lists(st.integers(0, 50)))
def test_so_many_names_are_remembered_and_no_more(names: list[int]) -> None:
    limit = RateLimit(1, 1, most=10)
    for name in names:
        limit.take(str(name), 0.0)
        assert len(limit) <= 10


def test_who_asked_longest_ago_is_forgotten_first() -> None:
    limit = RateLimit(1, 1, most=2)
    for name in ("first", "second", "first", "third"):
        limit.take(name, 0.0)
    assert limit.take("first", 0.0) > 0
    assert limit.take("second", 0.0) == 0


@given(st.lists(st.floats(0, 100), max_size=50))
def test_a_clock_that_goes_back_gives_nothing_twice(moments: list[float]) -> None:
    limit = RateLimit(1, 1)
    taken = sum(limit.take("ci", now) == 0 for now in moments)
    assert taken <= 1 + max(moments, default=0) - min(moments, default=0) + 1e-6
