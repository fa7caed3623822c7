"""A queue of which no user can take all."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, TypeVar

from spandial_agent.processes.crowd import Crowd

__all__ = ["SharedQueue"]

_Thing = TypeVar("_Thing")


class SharedQueue(Generic[_Thing]):
    """Each user's things are taken in the order in which they came, and the users' in turn. Not for several threads.

    Args:
        most: so many are in it at most, with those that were taken and whose room is still needed.
    """

    def __init__(self, most: int) -> None:
        self._at_most = most
        self._size = 0
        self._things: OrderedDict[int, deque[_Thing]] = OrderedDict()  # by user; the next one's first
        self._crowd: Crowd | None = None  # from where there is no room until half is free

    def __len__(self) -> int:
        return self._size

    def held(self, uid: int) -> int:
        return len(self._things.get(uid, ()))

    def put(self, uid: int, thing: _Thing) -> None:
        """The caller looks for room before."""
        things = self._things.get(uid)
        if things is None:
            things = self._things[uid] = deque()
        things.append(thing)
        self._size += 1
        if self._crowd is not None:
            self._crowd.add(uid)

    def make_room(self, uid: int) -> tuple[int, int]:
        """There is no room for one more of a user: who has to lose one for it, and how many he has. He who has most has
        lost his newest now; where that is the user himself, nothing has changed, and it is the one to come."""
        if not self._things:
            return uid, 0
        if self._crowd is None:
            self._crowd = Crowd({user: len(things) for user, things in self._things.items()})
        loser, held = self._crowd.most()
        own = self.held(uid)
        if own >= held:
            return uid, own
        self._things[loser].pop()
        self._gone(loser, 1)
        if not self._things[loser]:
            del self._things[loser]
        return loser, held

    def take(self, most: int) -> list[_Thing]:
        """So many at most, shared by the users that there are."""
        taken: list[_Thing] = []
        while self._things and len(taken) < most:
            uid, things = self._things.popitem(last=False)
            share = max((most - len(taken)) // (len(self._things) + 1), 1)
            count = min(share, len(things))
            taken += [things.popleft() for _ in range(count)]
            if things:
                self._things[uid] = things
            self._gone(uid, count)
        return taken

    def clear(self) -> None:
        self._things.clear()
        self._size, self._crowd = 0, None

    def _gone(self, uid: int, count: int) -> None:
        self._size -= count
        if self._crowd is None:
            return
        if self._size <= self._at_most // 2:
            self._crowd = None
            return
        for _ in range(count):
            self._crowd.remove(uid)
