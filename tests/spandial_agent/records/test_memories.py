"""What is remembered of connections is shared by users: who has few keeps them, however many another one opens."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from spandial_agent.records.memories import Memories

HONEST, HOSTILE, THIRD = 1, 2, 3


def test_who_has_few_connections_keeps_them_however_many_another_user_opens() -> None:
    memories = Memories[str](10)
    for connection in (1, 2):
        memories.put(connection, "honest", HONEST)
    for connection in range(100, 200):
        memories.put(connection, "hostile", HOSTILE)
    assert [memories.get(connection) for connection in (1, 2)] == ["honest", "honest"]
    assert (len(memories), memories.forgotten) == (10, 92)


def test_who_comes_late_is_remembered_and_costs_whoever_has_most() -> None:
    memories = Memories[str](10)
    for connection in range(100, 109):
        memories.put(connection, "hostile", HOSTILE)
    for connection in range(1, 5):
        memories.put(connection, "honest", HONEST)
    assert all(memories.get(connection) for connection in range(1, 5))
    memories.put(200, "hostile", HOSTILE)
    memories.put(300, "third", THIRD)
    assert all(memories.get(connection) for connection in (1, 2, 3, 4, 300)), "the hostile user has more"


def test_of_one_users_connections_the_one_used_last_stays() -> None:
    memories = Memories[str](3)
    for connection in (1, 2, 3):
        memories.put(connection, str(connection), HONEST)
    memories.get(1)
    memories.put(4, "4", HONEST)
    assert [memories.get(connection) for connection in (1, 2, 3, 4)] == ["1", None, "3", "4"]


def test_who_has_few_heavy_connections_loses_them_and_not_who_has_many_light_ones() -> None:
    memories = Memories[str](100)
    for connection in range(1, 41):
        memories.put(connection, "honest", HONEST)
    for connection in (100, 101, 102):
        memories.put(connection, "hostile", HOSTILE)
        memories.weigh(connection, 30)
    assert all(memories.get(connection) for connection in range(1, 41))
    assert [memories.get(connection) for connection in (100, 101, 102)] == [None, "hostile", "hostile"]
    assert (len(memories), memories.forgotten) == (42, 1)


def test_nothing_is_counted_that_was_forgotten_on_purpose() -> None:
    memories = Memories[str](3)
    memories.put(1, "", HONEST)
    memories.clear()
    assert (len(memories), memories.get(1), memories.forgotten) == (0, None, 0)
    for connection in (1, 2, 3, 4):
        memories.put(connection, "", HONEST)
    assert (len(memories), memories.forgotten) == (3, 1)


@given(
    most=st.integers(1, 8), users=st.lists(st.integers(0, 4), max_size=60), seed=st.integers(0, 9), clear=st.booleans()
)
def test_always_the_user_with_most_loses_what_he_used_least(
    most: int, users: list[int], seed: int, clear: bool
) -> None:
    memories, known, bits = Memories[int](most), dict[int, int](), random.Random(seed)
    for connection, user in enumerate(users):
        if clear and connection == 20:
            memories.clear()
            known.clear()
        if clear and connection == 30:
            gone = [*known][::2]
            memories.drop([*gone, 1000])
            known = {each: owner for each, owner in known.items() if each not in gone}
        for used in bits.sample(sorted(known), len(known) // 2):
            assert memories.get(used) == used
            known[used] = known.pop(used)
        before, known[connection] = dict(known), user
        memories.put(connection, connection, user)
        lost = [each for each in known if each not in memories._known]
        assert len(lost) == (len(before) == most)
        for each in lost:
            counts = Counter(known.values())
            assert counts[known[each]] == max(counts.values())
            assert each == next(other for other in known if known[other] == known[each])
            del known[each]
    assert len(memories) == len(known)
