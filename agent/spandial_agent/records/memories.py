"""What is remembered of connections, shared by the users whose they are."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable
from typing import Generic, NamedTuple, TypeVar

__all__ = ["Memories"]

_Memory = TypeVar("_Memory")


class _Known(NamedTuple, Generic[_Memory]):
    memory: _Memory
    owner: int
    weight: int


class Memories(Generic[_Memory]):
    """One object for each of the connections that were used last. Where there is no room for one more, the user whose
    weigh most loses the one that he has not used for longest: whoever has few keeps them, however many another one
    opens, and however much is remembered of those.

    Every method takes the same time in the mean, however many connections and users there are.

    Attributes:
        forgotten: how many connections had to go for others.

    Args:
        most: what all may weigh together.
    """

    def __init__(self, most: int) -> None:
        self.forgotten = 0
        self._most = most
        self._known: dict[int, _Known[_Memory]] = {}
        self._of: dict[int, OrderedDict[int, None]] = {}  # a user's connections, the one used last at the end
        self._weights: Counter[int] = Counter()  # of users
        self._weight = 0  # of all
        self._by_weight: dict[int, dict[int, None]] = {}  # the users whose connections weigh so much
        self._highest = 0  # that any user's do, or more

    def __len__(self) -> int:
        return len(self._known)

    def get(self, connection: int) -> _Memory | None:
        known = self._known.get(connection)
        if known is None:
            return None
        self._of[known.owner].move_to_end(connection)
        return known.memory

    def put(self, connection: int, memory: _Memory, owner: int) -> _Memory:
        """Remember a connection of this user, of which nothing is remembered. It weighs 1."""
        self._known[connection] = _Known(memory, owner, 1)
        self._of.setdefault(owner, OrderedDict())[connection] = None
        self._add(owner, 1)
        self._make_room()
        return memory

    def weigh(self, connection: int, weight: int) -> None:
        """A connection weighs so much from now on, if it is remembered."""
        known = self._known.get(connection)
        if known is None or known.weight == weight:
            return
        self._known[connection] = known._replace(weight=weight)
        self._add(known.owner, weight - known.weight)
        self._make_room()

    def drop(self, connections: Iterable[int]) -> None:
        """Forget those of these connections of which something is remembered."""
        for connection in connections:
            if connection in self._known:
                self._remove(connection)

    def clear(self) -> None:
        for each in (self._known, self._of, self._weights, self._by_weight):
            each.clear()
        self._weight = self._highest = 0

    def _make_room(self) -> None:
        while self._weight > self._most:
            while self._highest not in self._by_weight:  # never more often than it had been raised by one
                self._highest -= 1
            owner = next(iter(self._by_weight[self._highest]))
            self._remove(next(iter(self._of[owner])))
            self.forgotten += 1

    def _remove(self, connection: int) -> None:
        known = self._known.pop(connection)
        connections = self._of[known.owner]
        del connections[connection]
        if not connections:
            del self._of[known.owner]
        self._add(known.owner, -known.weight)

    def _add(self, owner: int, weight: int) -> None:
        """What this user's connections weigh changes by so much."""
        before = self._weights[owner]
        now = before + weight
        if before:
            same = self._by_weight[before]
            del same[owner]
            if not same:
                del self._by_weight[before]
        if now:
            self._weights[owner] = now
            self._by_weight.setdefault(now, {})[owner] = None
        else:
            del self._weights[owner]
        self._weight += weight
        self._highest = max(self._highest, now)
