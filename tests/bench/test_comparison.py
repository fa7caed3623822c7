"""What bench/compare says of two trees."""

from __future__ import annotations

import math
import random

import pytest
from bench.comparison import CANNOT_TELL, NEW, OLD, Comparison, Quad, Side, four, judge, orders
from bench.report import Interval

EVEN = Interval(0.97, 1.0, 1.03)


def compared(lines: int, turns: int, ratio: float, drawn: random.Random) -> Comparison:
    """A host where every process is a percent off, and every measurement two."""
    comparison = Comparison()

    def measured(cost: float) -> tuple[float, float]:
        return cost * drawn.lognormvariate(0, 0.02), cost * drawn.lognormvariate(0, 0.02)

    for line in range(lines):
        for _ in range(turns):
            old, new = 100 * drawn.lognormvariate(0, 0.01), 100 * ratio * drawn.lognormvariate(0, 0.01)
            quads = [Quad(measured(old), measured(new)) for _ in range(4)]
            comparison.add("part", "us", {str(line): quads})
    return comparison


@pytest.mark.parametrize(
    ("ratio", "noise", "unit", "said"),
    [
        (Interval(0.99, 1.0, 1.01), EVEN, "ns", CANNOT_TELL),
        (Interval(1.0, 1.05, 1.1), EVEN, "ns", CANNOT_TELL),
        (Interval(1.01, 1.05, 1.1), EVEN, "ns", "slower"),
        (Interval(0.90, 0.93, 0.96), EVEN, "us", "faster"),
        (Interval(1.04, 1.05, 1.1), EVEN, "MB", "larger"),
        (Interval(0.90, 0.93, 0.96), EVEN, "MB", "smaller"),
        (Interval(1.01, 1.02, 1.1), EVEN, "ns", f"{CANNOT_TELL}: within the noise"),
        (Interval(1.1, 1.2, 1.3), Interval(1.01, 1.02, 1.03), "ns", f"{CANNOT_TELL}: the old is not like itself"),
        (Interval(-math.inf, 1.5, math.inf), EVEN, "ns", f"{CANNOT_TELL}: too few turns"),
    ],
)
def test_a_verdict_needs_the_whole_interval_and_must_be_beyond_the_noise(
    ratio: Interval, noise: Interval, unit: str, said: str
) -> None:
    verdict = judge(ratio, noise, unit)
    assert verdict.text == said
    assert verdict.worse == (said in ("slower", "larger"))
    assert verdict.better == (said in ("faster", "smaller"))


def test_a_whole_table_of_equal_trees_seldom_has_a_verdict() -> None:
    drawn = random.Random(1)
    wrong = sum(
        any(not verdict.text.startswith(CANNOT_TELL) for verdict in compared(25, 12, 1.0, drawn).verdicts())
        for _ in range(200)
    )
    assert wrong / 200 < 0.09


def test_what_is_a_tenth_slower_is_found() -> None:
    comparison = compared(25, 16, 1.1, random.Random(2))
    assert all(verdict.worse for verdict in comparison.verdicts())
    assert comparison.exit_code() == 1


def test_the_more_lines_the_surer_each() -> None:
    assert compared(1, 1, 1.0, random.Random(3)).confidence == pytest.approx(0.95)
    assert compared(25, 1, 1.0, random.Random(3)).confidence == pytest.approx(0.998)


def test_what_is_missing_shows_in_the_exit_code() -> None:
    comparison = compared(2, 12, 1.0, random.Random(4))
    assert comparison.exit_code() == 0
    comparison.missing.append("h2load is not installed.")
    assert comparison.exit_code() == 2


@pytest.mark.parametrize("count", [1, 2, 7, 16])
def test_each_order_begins_with_the_old_as_often_as_with_the_new(count: int) -> None:
    drawn = orders(count)
    assert len(drawn) == count
    assert abs(sum(order[0] == OLD for order in drawn) - count / 2) <= 0.5
    assert set(drawn) <= {(OLD, NEW, NEW, OLD), (NEW, OLD, OLD, NEW)}


def test_four_measurements_make_two_pairs() -> None:
    asked: list[tuple[Side, int]] = []

    def measure(side: Side, index: int) -> dict[str, float]:
        asked.append((side, index))
        return {"time": len(asked)}

    assert four((OLD, NEW, NEW, OLD), measure) == {"time": Quad(old=(1, 4), new=(2, 3))}
    assert asked == [(OLD, 0), (NEW, 0), (NEW, 1), (OLD, 1)]


def test_where_the_new_begins_the_later_measurement_comes_first() -> None:
    values = iter([1.0, 2.0, 3.0, 4.0])
    found = four((NEW, OLD, OLD, NEW), lambda side, index: {"time": next(values)})
    assert found == {"time": Quad(old=(3, 2), new=(4, 1))}


def test_a_steady_drift_falls_out() -> None:
    assert Quad(old=(1.0, 1.3), new=(1.1, 1.2)).ratio == pytest.approx(1)


def test_what_costs_nothing_was_not_measured() -> None:
    with pytest.raises(ValueError, match="time was measured as 0"):
        four((OLD, NEW, NEW, OLD), lambda side, index: {"time": 0.0})


def test_raw_pairs_can_be_written() -> None:
    comparison = Comparison()
    comparison.add("part", "us", {"time": [Quad((1, 2), (3, 4))]})
    assert comparison.raw()["quantities"] == [
        {"part": "part", "name": "time", "unit": "us", "turns": [[{"old": (1, 2), "new": (3, 4)}]]}
    ]
