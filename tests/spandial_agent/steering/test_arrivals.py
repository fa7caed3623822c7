"""How often something comes, from counts of windows."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spandial_agent.steering.arrivals import Arrivals


def fed(*windows: float, seconds: float = 1.0) -> Arrivals:
    arrivals = Arrivals()
    for count in windows:
        arrivals.add(count, seconds)
    return arrivals


def test_before_there_is_a_window_nothing_comes() -> None:
    assert Arrivals().rate == 0


@given(st.floats(0, 1e6), st.integers(1, 50), st.floats(0.1, 10))
def test_an_even_load_is_known_exactly(load: float, windows: int, seconds: float) -> None:
    assert fed(*[load * seconds] * windows, seconds=seconds).rate == pytest.approx(load)


@given(st.lists(st.tuples(st.integers(0, 10**6), st.floats(0.1, 5)), min_size=1, max_size=40))
def test_the_rate_is_never_outside_what_was_seen(windows: list[tuple[int, float]]) -> None:
    arrivals = Arrivals()
    for count, seconds in windows:
        arrivals.add(count, seconds)
    rates = [count / seconds for count, seconds in windows]
    assert min(rates) * (1 - 1e-9) <= arrivals.rate <= max(rates) * (1 + 1e-9)


@given(st.floats(4, 1e5), st.sampled_from([10, 0.1]), st.floats(0, 1))
def test_a_tenfold_step_is_known_after_its_second_window(load: float, factor: float, when: float) -> None:
    """The first, in which it comes, is a mix."""
    load = max(load, load / factor / 10)
    before, after = (load, load * factor) if factor > 1 else (load * 10, load)
    arrivals = fed(*[before] * 30, before * when + after * (1 - when), after, after)
    assert arrivals.rate == pytest.approx(after, rel=0.1, abs=3)


def test_chance_does_not_end_the_memory() -> None:
    rng = random.Random(7)
    arrivals = Arrivals()
    for _ in range(600):
        arrivals.add(sum(rng.random() < 0.01 for _ in range(1000)), 1)
        assert arrivals.rate == pytest.approx(10, rel=0.9)
    assert arrivals.rate == pytest.approx(10, rel=0.15)


def test_one_odd_window_is_forgotten() -> None:
    arrivals = fed(*[100] * 20, 5000)
    assert arrivals.rate == 5000
    arrivals.add(100, 1)
    assert arrivals.rate == pytest.approx(100)


def test_windows_that_contradict_each_other_count_together() -> None:
    arrivals = fed(*[2000, 0] * 30)
    rates = []
    for count in [2000, 0] * 10:
        arrivals.add(count, 1)
        rates.append(arrivals.rate)
    assert sum(rates) / len(rates) == pytest.approx(1000, rel=0.1)
    assert min(rates) > 700
    assert max(rates) < 1300


def test_silence_is_no_arrivals_at_all() -> None:
    assert fed(*[50] * 10, 0, 0).rate == 0
