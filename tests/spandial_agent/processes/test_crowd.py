"""What there is only so much room for: whoever has most loses first."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from spandial_agent.processes.crowd import Crowd, Crowded, SharedMap
from spandial_agent.processes.shared_queue import SharedQueue

ROOM = 12
_users = st.integers(1, 5)


@given(st.dictionaries(_users, st.integers(1, 5)), st.lists(st.tuples(_users, st.booleans()), max_size=80))
def test_who_has_most_is_known(held: dict[int, int], changes: list[tuple[int, bool]]) -> None:
    crowd, expected = Crowd(held), Counter(held)
    for uid, more in changes:
        if more:
            crowd.add(uid)
            expected[uid] += 1
        elif expected[uid]:
            crowd.remove(uid)
            expected[uid] -= 1
        expected = +expected
        if expected:
            uid, most = crowd.most()
            assert most == expected[uid] == max(expected.values())


@given(st.lists(st.tuples(_users, st.integers(1, 40), st.booleans()), max_size=150))
def test_a_newcomer_finds_room_and_nobody_with_less_than_his_share_loses(changes: list[tuple[int, int, bool]]) -> None:
    lost: list[tuple[int, int]] = []
    shared: SharedMap[int, int] = SharedMap(ROOM, lambda key, value, uid, held: lost.append((uid, held)))
    users = len({uid for uid, _, _ in changes})
    for uid, key, goes in changes:
        if goes:
            shared.pop(key)
            continue
        before, room, held = len(lost), len(shared) < ROOM or key in shared, Counter(shared._owners.values())
        shared.put(uid, key, uid)
        assert shared.get(key) == uid
        assert len(shared) <= ROOM
        assert len(lost) == before + (not room)
        if not room:
            loser, had = lost[-1]
            assert had == held[loser] == max(held.values()) >= ROOM / users
    assert len(shared) == sum(map(shared.held, range(6)))


def test_the_oldest_goes() -> None:
    shared: SharedMap[str, int] = SharedMap(3)
    for number, key in enumerate("abcde"):
        shared.put(1000, key, number)
    assert [key in shared for key in "abcde"] == [False, False, True, True, True]
    assert shared.use("c") == 2
    shared.put(1001, "f", 5)
    assert [key in shared for key in "cdef"] == [True, False, True, True]
    assert [shared.owner(key) for key in "def"] == [None, 1000, 1001]
    assert shared.use("d") is None


@given(st.lists(st.tuples(_users, st.integers(0, 6)), max_size=150))
def test_a_queue_is_shared_and_keeps_each_users_order(changes: list[tuple[int, int]]) -> None:
    """A step puts one thing of a user, and takes so many."""
    queue: SharedQueue[tuple[int, int]] = SharedQueue(ROOM)
    expected: dict[int, list[int]] = {uid: [] for uid in range(1, 6)}
    for number, (uid, taken) in enumerate(changes):
        held = {user: len(things) for user, things in expected.items()}
        loser = 0
        if len(queue) >= ROOM:
            loser, had = queue.make_room(uid)
            assert had == held[loser] == max(held.values())
            if loser != uid:
                expected[loser].pop()
        if loser != uid:
            queue.put(uid, (uid, number))
            expected[uid].append(number)
        for user, thing in queue.take(taken):
            assert expected[user].pop(0) == thing
        assert len(queue) == sum(map(len, expected.values())) <= ROOM
    queue.clear()
    assert (len(queue), queue.take(5)) == (0, [])


def test_what_is_taken_is_of_all_users_in_turn() -> None:
    queue: SharedQueue[int] = SharedQueue(1000)
    for number in range(900):
        queue.put(64321, number)
    queue.put(1000, -1)
    queue.put(1001, -2)
    taken = queue.take(30)
    assert len(taken) == 30
    assert {-1, -2} <= set(taken)
    assert queue.take(3) == [28, 29, 30]


def test_a_queue_whose_room_is_all_on_its_way_has_none_for_anybody() -> None:
    assert SharedQueue[int](5).make_room(1000) == (1000, 0)


def test_a_loss_is_told_for_some_minutes_with_the_user_who_had_most() -> None:
    now = 5.0
    crowded = Crowded("seats", 6, clock=lambda: now)
    assert crowded.trouble == ""
    crowded.lose(64321, 5)
    crowded.lose(1000, 2)
    assert "2 seats were lost for want of room in the last minutes: user 64321 had 5 of 6." in crowded.trouble
    now += 301
    assert crowded.trouble == ""
    crowded.lose(-1, 1)
    assert "1 seats were lost" in crowded.trouble
    assert "a user who is not known had 1 of 6." in crowded.trouble
