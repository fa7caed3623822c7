"""What is remembered of connections, shared by the users whose they are."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Generic, NamedTuple, TypeVar

__all__ = ["Memories"]

_Memory = TypeVar("_Memory")


class _Known(NamedTuple, Generic[_Memory]):
    memory: _Memory
    owner: int


class Memories(Generic[_Memory]):
    """One object for each of the connections that were used last. Where there is no room for one more, the user who has
    most loses the one that he has not used for longest: whoever has few keeps them, however many another one opens.

    Every method takes the same time, however many connections and users there are.

    Attributes:
        forgotten: how many had to go for others.

    Args:
        most: connections that are remembered at once.
    """

    def __init__(self, most: int) -> None:
        self.forgotten = 0
        self._most = most
        self._known: dict[int, _Known[_Memory]] = {}
        self._of: dict[int, OrderedDict[int, None]] = {}  # a user's connections, the one used last at the end
        self._by_count: dict[int, dict[int, None]] = {}  # the users who have so many
        self._highest = 0  # that any user has

    def __len__(self) -> int:
        return len(self._known)

    def get(self, connection: int) -> _Memory | None:
        known = self._known.get(connection)
        if known is None:
            return None
        self._of[known.owner].move_to_end(connection)
        return known.memory

    def put(self, connection: int, memory: _Memory, owner: int) -> _Memory:
        """Remember a connection of this user, of which nothing is remembered."""
        self._known[connection] = _Known(memory, owner)
        connections = self._of.setdefault(owner, OrderedDict())
        connections[connection] = None
        self._recount(owner, len(connections) - 1, len(connections))
        if len(self._known) > self._most:
            self._forget_one()
        return memory

    def drop(self, connections: Iterable[int]) -> None:
        """Forget those of these connections of which something is remembered."""
        for connection in connections:
            known = self._known.get(connection)
            if known is not None:
                self._remove(connection, known.owner)

    def clear(self) -> None:
        for each in (self._known, self._of, self._by_count):
            each.clear()
        self._highest = 0

    def _forget_one(self) -> None:
        owner = next(iter(self._by_count[self._highest]))
        self._remove(next(iter(self._of[owner])), owner)
        self.forgotten += 1

    def _remove(self, connection: int, owner: int) -> None:
        connections = self._of[owner]
        del connections[connection], self._known[connection]
        if not connections:
            del self._of[owner]
        self._recount(owner, len(connections) + 1, len(connections))

    def _recount(self, owner: int, before: int, now: int) -> None:
        """A user has one more, or one less."""
        if before:
            same = self._by_count[before]
            del same[owner]
            if not same:
                del self._by_count[before]
        if now:
            self._by_count.setdefault(now, {})[owner] = None
        if now > self._highest or self._highest not in self._by_count:
            self._highest = now
