"""What holds a target's rates below those of its rules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spandial.abi import EntryKind, Mode, encode_word
from spandial_agent.capture.tally import KindCounts, tally_of
from spandial_agent.steering.loads import Run, budget_factors, load_at, runs_of, window_of
from spandial_agent.steering.sharing import Asked
from spandial_agent.steering.throughput import Load, Window
from spandial_agent.targets.limit import Limit
from spandial_api.rules import Rule
from spandial_api.selectors import Selector

ALL = Rule(Selector(), 10)
HTTP = Rule(Selector(protocol="http"), 50, Mode.BOOST)
EVERY = tuple(EntryKind)

COUNTS = KindCounts((1, 100, 10, 0), (1, 30, 5, 0), (0, 40, 2, 0), (0, 20, 1, 0))


def test_a_limit_multiplies_and_caps_and_leaves_the_floor() -> None:
    assert Limit(0.5).rate(40) == 20
    assert Limit(0.5, most=1).rate(40) == 1
    assert Limit(0).rate(40, floor=0.1) == 0.1
    assert Limit(0).rate(0, floor=0.1) == 0
    assert Limit().rate(40) == 40


def test_it_says_whose_it_is() -> None:
    assert [Limit(0.5).why, Limit(most=1).why, Limit(0.5, 1).why] == [
        "budget",
        "tenant quota",
        "budget and tenant quota",
    ]


def test_kinds_with_one_rate_are_looked_at_together() -> None:
    assert runs_of((ALL,) * 4, (10.0,) * 4, 0) == [Run(ALL, 10, EVERY)]
    others = (EntryKind.INTERNAL, EntryKind.GRPC, EntryKind.DB)
    default = encode_word(25)
    assert runs_of((ALL, HTTP, ALL, ALL), (10.0, 50.0, 10.0, 10.0), default) == [
        Run(ALL, 10, others),
        Run(HTTP, 50, (EntryKind.HTTP,)),
    ]
    assert runs_of((None,) * 4, (0.0,) * 4, default) == [Run(None, 25, EVERY)]


def test_a_window_holds_what_was_counted_and_what_the_rate_expects() -> None:
    tally = tally_of(COUNTS)
    both = Run(ALL, 10, EVERY)
    assert window_of(both, tally, 2, None) == Window(2, 69, 15, 42, 21, 6.9, 4.2)
    assert window_of(both, tally, 2, Limit(0.5)).by_rate == pytest.approx(3.45)
    assert window_of(both, tally, 2, None, changed=True)[5:] == (None, None)
    http = Run(HTTP, 50, (EntryKind.HTTP,))
    assert window_of(http, tally, 1, None) == Window(1, 60, 10, 40, 20, 30, 20)


def test_the_load_is_told_at_the_rate_that_was_in_force() -> None:
    run = Run(Rule(Selector(), 50, Mode.BOOST), 50, EVERY)
    window = Window(2, untraced=60, traced=40, traced_kept=22)
    assert load_at(run, window, None) == Load(forced=2, drawn=48)
    assert load_at(run, window, Limit(0)).forced == pytest.approx(11, rel=0.01)


def test_who_asks_for_more_than_its_share_is_multiplied() -> None:
    asked = {1: Asked(10), 2: Asked(100), 3: Asked(200, 20)}
    assert budget_factors(1000, asked, {}) == {}
    factors = budget_factors(110, asked, {})
    assert factors == {2: pytest.approx(0.5), 3: pytest.approx(30 / 180)}
    assert budget_factors(111, asked, factors) == factors  # hardly a change
    assert budget_factors(150, asked, factors) != factors


@given(
    st.floats(1, 1e5),
    st.dictionaries(
        st.integers(1, 50), st.tuples(st.floats(0.01, 1e5), st.floats(0, 1)).map(lambda p: Asked(p[0], p[0] * p[1]))
    ),
)
def test_what_is_kept_under_the_factors_fits_the_budget(budget: float, asked: dict[int, Asked]) -> None:
    factors = budget_factors(budget, asked, {})
    assert all(0 <= factor < 1 for factor in factors.values())
    kept = sum(least + factors.get(pid, 1) * (wanted - least) for pid, (wanted, least) in asked.items())
    assert kept <= max(budget, sum(one.least for one in asked.values())) * 1.0001 + 1e-6


def test_where_operations_have_rates_of_their_own_what_was_kept_tells() -> None:
    """Of 1,000 requests at 1 %, half are of an operation that is kept: what is asked for is what was kept."""
    run = Run(Rule(Selector(), 1), 1, EVERY)
    window = Window(1, untraced=900, untraced_kept=455, traced=100, traced_kept=20)
    load = load_at(run, window, None, by_operation=True)
    assert load.forced == 20
    assert load.kept(1) == pytest.approx(475)
    halved = window._replace(untraced_kept=227.5)
    assert load_at(run, halved, Limit(0.5), by_operation=True).kept(1) == pytest.approx(475)
    assert load_at(run, window, Limit(0), by_operation=True).forced == 20
    boost = Run(Rule(Selector(), 1, Mode.BOOST), 1, EVERY)
    assert load_at(boost, window, None, by_operation=True) == Load(0, pytest.approx(47_500))
