"""What one user may take of what all share."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spandial_agent.capture.shares import Places, TimeShares


def take_all(places: Places, user: int) -> int:
    taken = 0
    while places.take(user):
        taken += 1
    return taken


def test_one_alone_gets_half_and_the_next_half_of_the_rest() -> None:
    places = Places(512)
    assert [take_all(places, user) for user in (1, 2, 3)] == [224, 112, 56]
    assert places.taken(2) == 112


def test_an_eighth_is_roots_whoever_comes() -> None:
    places = Places(64)
    assert sum(take_all(places, user) for user in range(1, 100)) == 56
    assert take_all(places, 0) == 8


def test_what_is_given_back_is_free() -> None:
    places = Places(2)
    assert take_all(places, 1) == 1
    places.give_back(1)
    assert places.take(2)


@given(st.lists(st.tuples(st.integers(1, 5), st.booleans()), max_size=200))
def test_who_has_none_finds_one_unless_many_took_all(moves: list[tuple[int, bool]]) -> None:
    places = Places(64)
    for user, take in moves:
        if take:
            places.take(user)
        elif places.taken(user):
            places.give_back(user)
    assert places.take(6)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_who_used_his_time_waits_until_it_is_made_good() -> None:
    clock = Clock()
    times = TimeShares(2.0, 0.1, clock)
    times.used(1, 1.5)
    assert not times.wait_s(1)
    times.used(1, 1.5)
    assert times.wait_s(1) == pytest.approx(10.0)
    assert not times.wait_s(2)
    clock.now = 10.1
    assert not times.wait_s(1)


def test_root_has_no_limit() -> None:
    times = TimeShares(2.0, 0.1, Clock())
    times.used(0, 100.0)
    assert not times.wait_s(0)
