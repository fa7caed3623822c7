"""What there is only so much of, shared by users."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spandial_agent.processes import shares as shares_module
from spandial_agent.processes.shares import Shares

ALL, RESERVE, ROOTS = 4094, 512, 64


class Taking:
    def __init__(self, everything: int = ALL, reserve: int = RESERVE, roots: int = ROOTS) -> None:
        self.shares = Shares(reserve, roots)
        self.free = everything

    def take(self, uid: int, most: int = ALL) -> int:
        """How many a user gets of so many that he asks for."""
        got = 0
        while got < most and self.shares.may_take(uid, self.free):
            self.shares.take(uid)
            self.free -= 1
            got += 1
        return got


@pytest.fixture
def taking(monkeypatch: pytest.MonkeyPatch) -> Taking:
    monkeypatch.setattr(shares_module.os, "geteuid", lambda: 0)
    return Taking()


def test_one_user_can_use_nearly_all_and_root_all(taking: Taking) -> None:
    assert taking.take(1000) == ALL - RESERVE
    assert taking.take(0) == RESERVE


def test_who_comes_late_finds_half_of_what_is_left(taking: Taking) -> None:
    taking.take(64321)
    assert taking.take(1000) == (RESERVE - ROOTS) // 2
    assert taking.take(1001) == (RESERVE - ROOTS) // 4
    assert taking.take(0, 10) == 10


def test_what_is_given_back_may_be_taken_again(taking: Taking) -> None:
    taking.take(64321)
    for _ in range(RESERVE):
        taking.shares.give_back(64321)
        taking.free += 1
    assert taking.take(64321) == RESERVE


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, ALL)), max_size=20))
def test_whatever_was_taken_before_a_newcomer_and_root_find_some(asked: list[tuple[int, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shares_module.os, "geteuid", lambda: 0)
        taking = Taking()
    for uid, most in asked:
        taking.take(uid, most)
    assert taking.take(1000, 1) == 1
    assert taking.take(0, ROOTS) == ROOTS


@pytest.fixture
def all_reserve(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Taking]:
    """Of so many that all are a reserve, and an eighth root's."""
    monkeypatch.setattr(shares_module.os, "geteuid", lambda: 0)
    return lambda everything: Taking(everything, everything, everything // 8)


def test_where_all_are_a_reserve_one_alone_gets_half_and_the_next_half_of_the_rest(
    all_reserve: Callable[[int], Taking],
) -> None:
    taking = all_reserve(512)
    assert [taking.take(user) for user in (1, 2, 3)] == [224, 112, 56]
    assert (taking.shares.held(2), taking.shares.total) == (112, 392)


def test_an_eighth_is_roots_whoever_comes(all_reserve: Callable[[int], Taking]) -> None:
    taking = all_reserve(64)
    assert sum(taking.take(user) for user in range(1, 100)) == 56
    assert taking.take(0) == 8


def test_what_is_given_back_is_free(all_reserve: Callable[[int], Taking]) -> None:
    taking = all_reserve(2)
    assert taking.take(1) == 1
    taking.shares.give_back(1)
    taking.free += 1
    assert taking.take(2, 1)


@given(st.lists(st.tuples(st.integers(1, 5), st.booleans()), max_size=200))
def test_who_has_none_finds_one_unless_many_took_all(moves: list[tuple[int, bool]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shares_module.os, "geteuid", lambda: 0)
        taking = Taking(64, 64, 8)
    for user, take in moves:
        if take:
            taking.take(user, 1)
        elif taking.shares.held(user):
            taking.shares.give_back(user)
            taking.free += 1
    assert taking.take(6, 1)
