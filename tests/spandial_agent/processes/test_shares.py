"""What there is only so much of, shared by users."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spandial_agent.processes import shares as shares_module
from spandial_agent.processes.shares import Shares

ALL, RESERVE, ROOTS = 4094, 512, 64


class Taking:
    def __init__(self) -> None:
        self.shares = Shares(RESERVE, ROOTS)
        self.free = ALL

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
