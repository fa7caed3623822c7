"""What waits between two threads: who comes late finds room."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spandial_agent.processes.backlog import Backlog
from spandial_agent.processes.crowd import Crowded

ROOM = 64


class Waiting:
    """Things are (user, number)."""

    def __init__(self) -> None:
        self.asked = 0
        self.crowded = Crowded("things", ROOM)
        self.backlog: Backlog[tuple[int, int], tuple[tuple[int, int], ...]] = Backlog(ROOM, self._uid_of, self.crowded)

    def put(self, *things: tuple[int, int]) -> list[tuple[int, int]]:
        admitted = list(self.backlog.admit(things))
        if admitted:
            self.backlog.append(tuple(admitted))
        return admitted

    def _uid_of(self, thing: tuple[int, int]) -> int:
        self.asked += 1
        return thing[0]


@pytest.fixture
def waiting() -> Waiting:
    return Waiting()


def test_one_user_can_use_three_quarters_and_nobody_asks_whose_they_are(waiting: Waiting) -> None:
    got = sum(len(waiting.put((64321, number))) for number in range(48))
    assert (got, len(waiting.backlog), waiting.asked) == (48, 48, 0)
    assert waiting.put((64321, 48)) == []
    assert (
        "1 things were lost for want of room in the last minutes: user 64321 had 48 of 64." in waiting.crowded.trouble
    )


def test_each_who_comes_late_finds_half_of_what_is_left(waiting: Waiting) -> None:
    for number in range(1000):
        waiting.put((64321, number))
    assert [sum(len(waiting.put((uid, number))) for number in range(100)) for uid in (1, 2, 3)] == [8, 4, 2]


def test_what_was_taken_leaves_room(waiting: Waiting) -> None:
    for number in range(100):
        waiting.put((64321, number))
    assert waiting.backlog.take() == ((64321, 0),)
    assert waiting.put((64321, 100)) == [(64321, 100)]
    assert waiting.put((64321, 101)) == []
    while waiting.backlog.take():
        pass
    asked = waiting.asked
    assert len(waiting.put((64321, 0), (1000, 0))) == 2
    assert waiting.asked == asked


def test_one_thing_is_offered_and_several_pieces_are_taken(waiting: Waiting) -> None:
    got = sum(waiting.backlog.offer(((64321, number),)) for number in range(100))
    assert got == 48
    assert waiting.backlog.offer(((1000, 0),))
    assert waiting.backlog.take_some(2) == [((64321, 0),), ((64321, 1),)]
    assert sum(waiting.backlog.offer(((64321, number),)) for number in range(100)) == 1
    assert len(waiting.backlog.take_some(1000)) == 48
    assert waiting.backlog.take_some(1) == []


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 20), st.integers(0, 4)), max_size=60))
def test_things_come_in_order_and_who_has_few_is_admitted(steps: list[tuple[int, int, int]]) -> None:
    """A step puts so many things of a user in one piece, and takes so many pieces."""
    waiting, expected = Waiting(), deque[tuple[tuple[int, int], ...]]()
    number = 0
    for uid, count, taken in steps:
        held = sum(thing[0] == uid for piece in expected for thing in piece)
        things = tuple((uid, number := number + 1) for _ in range(count))
        free = ROOM - len(waiting.backlog)
        admitted = waiting.put(*things)
        assert admitted == list(things[: len(admitted)])
        if held < free:
            assert admitted
        if admitted:
            expected.append(tuple(admitted))
        for _ in range(taken):
            assert waiting.backlog.take() == (expected.popleft() if expected else None)
        assert len(waiting.backlog) == sum(map(len, expected)) < ROOM
