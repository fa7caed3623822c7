"""What is remembered of connections, shared by the users whose they are."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Generic, NamedTuple, TypeVar

from spandial_agent.processes.crowd import Crowd

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
        self.clear()

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
        self._weights.add(owner)
        self._make_room()
        return memory

    def weigh(self, connection: int, weight: int) -> None:
        """A connection weighs so much from now on, if it is remembered."""
        known = self._known.get(connection)
        if known is None or known.weight == weight:
            return
        self._known[connection] = known._replace(weight=weight)
        self._weights.add(known.owner, weight - known.weight)
        self._make_room()

    def drop(self, connections: Iterable[int]) -> None:
        """Forget those of these connections of which something is remembered."""
        for connection in connections:
            if connection in self._known:
                self._remove(connection)

    def clear(self) -> None:
        self._known: dict[int, _Known[_Memory]] = {}
        self._of: dict[int, OrderedDict[int, None]] = {}  # a user's connections, the one used last at the end
        self._weights = Crowd()

    def _make_room(self) -> None:
        while self._weights.total > self._most:
            owner, _ = self._weights.most()
            self._remove(next(iter(self._of[owner])))
            self.forgotten += 1

    def _remove(self, connection: int) -> None:
        known = self._known.pop(connection)
        connections = self._of[known.owner]
        del connections[connection]
        if not connections:
            del self._of[known.owner]
        self._weights.remove(known.owner, known.weight)
