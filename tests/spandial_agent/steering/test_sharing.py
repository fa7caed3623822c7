"""A budget shared out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spandial_agent.steering.sharing import Asked, shares

RATES = st.floats(0, 1e6).map(lambda rate: round(rate, 3))
ASKED = st.lists(st.tuples(RATES, st.floats(0, 1)).map(lambda pair: Asked(pair[0], pair[0] * pair[1])), max_size=30)
FREE = st.lists(RATES.map(Asked), max_size=30)
NEAR = 1 + 1e-9


def test_what_fits_is_not_limited() -> None:
    assert shares(100, [Asked(30), Asked(70)]) == [30, 70]
    assert shares(100, []) == []


def test_who_asks_for_little_gets_it_and_the_others_the_same() -> None:
    assert shares(100, [Asked(10), Asked(1000), Asked(80)]) == [10, 45, 45]


def test_what_callers_keep_is_not_lowered_and_is_missing_elsewhere() -> None:
    assert shares(100, [Asked(200, 80), Asked(100), Asked(100)]) == [80, 10, 10]
    assert shares(100, [Asked(200, 120), Asked(100)]) == [120, 0]
    assert shares(0, [Asked(5), Asked(7, 1)]) == [0, 1]


@given(RATES, ASKED)
def test_the_budget_is_kept_and_used(budget: float, asked: list[Asked]) -> None:
    given_out = sum(shares(budget, asked))
    allowed = max(budget, sum(one.least for one in asked))
    assert given_out <= allowed * NEAR + 1e-6
    assert given_out == pytest.approx(min(sum(one.wanted for one in asked), allowed), rel=1e-9, abs=1e-5)


@given(RATES, ASKED)
def test_nobody_gets_more_than_it_asks_for_or_less_than_cannot_be_lowered(budget: float, asked: list[Asked]) -> None:
    for share, one in zip(shares(budget, asked), asked):
        assert one.least <= share <= one.wanted


@given(RATES, ASKED)
def test_who_is_limited_has_as_much_as_anybody_who_could_have_less(budget: float, asked: list[Asked]) -> None:
    """Max-min fairness."""
    given_out = shares(budget, asked)
    limited = [share for share, one in zip(given_out, asked) if share < one.wanted]
    could_have_less = [share for share, one in zip(given_out, asked) if share > one.least]
    if limited and could_have_less:
        assert min(limited) * NEAR >= max(could_have_less)


@given(RATES, RATES, ASKED)
def test_a_greater_budget_makes_nobody_poorer(budget: float, more: float, asked: list[Asked]) -> None:
    for before, after in zip(shares(budget, asked), shares(budget + more, asked)):
        assert after * NEAR + 1e-6 >= before


@given(RATES, FREE)
def test_the_order_does_not_matter(budget: float, asked: list[Asked]) -> None:
    assert shares(budget, asked[::-1]) == shares(budget, asked)[::-1]


@given(RATES, FREE.filter(bool), RATES)
def test_who_asks_for_more_gets_no_less(budget: float, asked: list[Asked], more: float) -> None:
    before = shares(budget, asked)[0]
    after = shares(budget, [Asked(asked[0].wanted + more), *asked[1:]])[0]
    assert after * NEAR + 1e-6 >= before
