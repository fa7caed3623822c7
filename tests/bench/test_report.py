"""What the benchmarks conclude from their numbers."""

from __future__ import annotations

import math
import random

import pytest
from bench.report import AT_LEAST, AT_MOST, Bar, Interval, median_interval


def test_the_interval_lies_between_values_that_the_sign_test_names() -> None:
    # Of 100 fair coins 40 or fewer on one side: 2.8 %; 39 or fewer: 1.8 %. Conover, Practical Nonparametric
    # Statistics, confidence interval for a quantile: the 40th and the 61st value.
    assert median_interval(range(1, 101)) == Interval(40, 50.5, 61)


def test_of_five_values_nothing_can_be_said() -> None:
    assert median_interval([1, 2, 3, 4, 5]) == Interval(-math.inf, 3, math.inf)
    assert median_interval([1, 2, 3, 4, 5, 6]) == Interval(1, 3.5, 6)


def test_more_confidence_takes_more_values() -> None:
    # Of ten fair coins none on one side: 0.2 %; of nine: 0.4 %.
    assert median_interval(range(1, 11), 0.998) == Interval(1, 5.5, 10)
    assert median_interval(range(1, 10), 0.998) == Interval(-math.inf, 5, math.inf)
    assert median_interval(range(1, 101), 0.998) == Interval(35, 50.5, 66)


@pytest.mark.parametrize("count", [7, 40, 81])
def test_the_true_median_is_outside_in_at_most_one_case_of_twenty(count: int) -> None:
    drawn = random.Random(count)
    cases = 2000
    outside = 0
    for _ in range(cases):
        interval = median_interval(drawn.expovariate(1) for _ in range(count))
        outside += not interval.low <= math.log(2) <= interval.high
    assert outside / cases < 0.065


@pytest.mark.parametrize(
    ("bar", "interval", "verdict"),
    [
        (Bar(AT_LEAST, 0.98), Interval(0.981, 0.99, 1.0), "held"),
        (Bar(AT_LEAST, 0.98), Interval(0.97, 0.99, 1.0), "undecided"),
        (Bar(AT_LEAST, 0.98), Interval(0.9, 0.95, 0.97), "MISSED"),
        (Bar(AT_MOST, 500), Interval(400, 450, 501), "undecided"),
        (Bar(AT_MOST, 500), Interval(400, 450, 500), "held"),
        (Bar(AT_LEAST, 0.98), Interval(-math.inf, 0.99, math.inf), "undecided"),
    ],
)
def test_a_bar_is_held_or_missed_only_if_the_whole_interval_is(bar: Bar, interval: Interval, verdict: str) -> None:
    assert bar.judge(interval).plain == verdict
