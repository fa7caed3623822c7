"""Who holds most of what there is only so much of."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import Generic, TypeVar

__all__ = ["Crowd", "Crowded", "SharedMap"]

_TOLD_S = 300.0  # a loss is told for so long after it

_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


class Crowd:
    """How much each user holds. Every method takes the same time in the mean, however many users there are.

    Args:
        held: how much each holds already, one at least.
    """

    def __init__(self, held: Mapping[int, int] | None = None) -> None:
        self._held = dict(held or {})
        self._users: dict[int, dict[int, None]] = {}  # by how much they hold
        for uid, amount in self._held.items():
            self._users.setdefault(amount, {})[uid] = None
        self._most = max(self._users, default=0)  # that anybody holds, or more
        self.total = sum(self._held.values())

    def add(self, uid: int, amount: int = 1) -> None:
        self._change(uid, amount)

    def remove(self, uid: int, amount: int = 1) -> None:
        self._change(uid, -amount)

    def most(self) -> tuple[int, int]:
        """The user who holds most, and how much. Somebody must hold something."""
        while self._most not in self._users:  # never more steps than it was raised by
            self._most -= 1
        return next(iter(self._users[self._most])), self._most

    def _change(self, uid: int, by: int) -> None:
        users, before = self._users, self._held.get(uid, 0)
        after = before + by
        self.total += by
        if before:
            alike = users[before]
            if len(alike) == 1:
                del users[before]
            else:
                del alike[uid]
        if not after:
            self._held.pop(uid, None)
            return
        self._held[uid] = after
        if after > self._most:
            self._most = after
        alike_now = users.get(after)
        if alike_now is None:
            users[after] = {uid: None}
        else:
            alike_now[uid] = None


class SharedMap(Generic[_Key, _Value]):
    """So many things at most. When there is no room, the user who has most loses the oldest of his: so a newcomer
    always finds room. While there is room, users are not compared.

    Args:
        lose: called with what has to go, and how many its user has.
    """

    def __init__(self, most: int, lose: Callable[[_Key, _Value, int, int], None] = lambda *_: None) -> None:
        self._at_most = most
        self._lose = lose
        self._owners: dict[_Key, int] = {}
        self._things: dict[int, OrderedDict[_Key, _Value]] = {}
        self._crowd: Crowd | None = None  # from where there is no room until half is free

    def __len__(self) -> int:
        return len(self._owners)

    def __contains__(self, key: _Key) -> bool:
        return key in self._owners

    def get(self, key: _Key) -> _Value | None:
        uid = self._owners.get(key)
        return None if uid is None else self._things[uid][key]

    def use(self, key: _Key) -> _Value | None:
        """As `get`; it is his newest now."""
        uid = self._owners.get(key)
        if uid is None:
            return None
        things = self._things[uid]
        things.move_to_end(key)
        return things[key]

    def owner(self, key: _Key) -> int | None:
        """The user whose it is. May be asked in any thread."""
        return self._owners.get(key)

    def held(self, uid: int) -> int:
        return len(self._things.get(uid, ()))

    def put(self, uid: int, key: _Key, value: _Value) -> None:
        """In the place of what has this key. Room is made before."""
        if key in self._owners:
            self.pop(key)
        if len(self._owners) >= self._at_most:
            self._make_room()
        self._owners[key] = uid
        things = self._things.get(uid)
        if things is None:
            things = self._things[uid] = OrderedDict()
        things[key] = value
        if self._crowd is not None:
            self._crowd.add(uid)

    def pop(self, key: _Key) -> _Value | None:
        uid = self._owners.pop(key, None)
        if uid is None:
            return None
        things = self._things[uid]
        value = things.pop(key)
        if not things:
            del self._things[uid]
        if self._crowd is not None:
            self._crowd.remove(uid)
            if len(self._owners) <= self._at_most // 2:
                self._crowd = None
        return value

    def _make_room(self) -> None:
        if self._crowd is None:
            self._crowd = Crowd({uid: len(things) for uid, things in self._things.items()})
        uid, held = self._crowd.most()
        key, value = next(iter(self._things[uid].items()))
        self._lose(key, value, uid, held)
        self.pop(key)  # unless `lose` did


class Crowded:
    """Remembers what was lost for want of room, and whose it was.

    Args:
        what: there is only so much room for: "open exchanges".
        most: so much.
    """

    def __init__(self, what: str, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._what = what
        self._most = most
        self._clock = clock
        self._lost = 0  # since it was told last
        self._at: float | None = None
        self._uid = self._held = 0

    def lose(self, uid: int, held: int) -> None:
        """One thing of a user was lost, who held so many."""
        now = self._clock()
        if self._at is None or now - self._at > _TOLD_S:
            self._lost = self._held = 0
        self._at = now
        self._lost += 1
        if held >= self._held or uid == self._uid:
            self._uid, self._held = uid, held

    @property
    def trouble(self) -> str:
        """What was lost in the last minutes, in one sentence; empty where nothing was."""
        if self._at is None or self._clock() - self._at > _TOLD_S:
            return ""
        whose = f"user {self._uid}" if self._uid >= 0 else "a user who is not known"
        return (
            f"{self._lost:,} {self._what} were lost for want of room in the last minutes: {whose} had "
            f"{self._held:,} of {self._most:,}. Look at what his processes do, or lower their rate."
        )
