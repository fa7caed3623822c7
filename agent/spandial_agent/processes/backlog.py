"""What one thread hands over to another that may be behind: no user takes all the room."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from spandial_agent.processes.crowd import Crowded

__all__ = ["Backlog"]

_Thing = TypeVar("_Thing")
_Piece = TypeVar("_Piece", bound=Sequence)  # type: ignore[type-arg]  # of things


class Backlog(Generic[_Thing, _Piece]):
    """First in, first out, in pieces. One thread puts, one takes; neither waits for the other.

    Up to three quarters nobody asks whose things wait. Of the last quarter a user may take only as long as fewer of his
    wait than there is room for. So whatever waits, a newcomer finds an eighth of all the room, the next one half of
    that.

    Args:
        most: so many things wait at most.
        uid_of: whose a thing is. Called in both threads.
        crowded: is told what found no room.
    """

    def __init__(self, most: int, uid_of: Callable[[_Thing], int], crowded: Crowded) -> None:
        self._at_most = most
        self._calm = most - most // 4  # up to which nobody asks
        self._uid_of = uid_of
        self._crowded = crowded
        self._pieces: deque[_Piece] = deque()
        self._appended = self._taken = 0  # each is written by one thread
        self._lock = threading.Lock()
        # Whose things wait, from where the last quarter was needed until half is free. What is taken meanwhile that was
        # not counted, or the other way around, is a piece or two.
        self._held: Counter[int] | None = None

    def __len__(self) -> int:
        return self._appended - self._taken

    def admit(self, things: Sequence[_Thing]) -> Sequence[_Thing]:
        """Those of them that there is room for; they are appended next."""
        if self._appended - self._taken + len(things) <= self._calm:
            if self._held is None:
                return things
            if len(self) <= self._at_most // 2:
                self._held = None
                return things
        return self._share(things)

    def append(self, piece: _Piece) -> None:
        """What was admitted, to be taken as it is."""
        self._appended += len(piece)
        self._pieces.append(piece)

    def offer(self, piece: _Piece) -> bool:
        """Append a piece of one thing, where there is room for it."""
        if (self._held is not None or self._appended - self._taken >= self._calm) and not self.admit(piece):
            return False
        self._appended += 1
        self._pieces.append(piece)
        return True

    def take_some(self, most: int) -> list[_Piece]:
        """So many pieces at most; none: nothing waits."""
        pieces = [self._pieces.popleft() for _ in range(min(len(self._pieces), most))]
        self._taken += sum(map(len, pieces))
        if self._held is not None:
            for piece in pieces:
                self._release(piece)
        return pieces

    def take(self) -> _Piece | None:
        """The next piece; None: nothing waits."""
        if not self._pieces:
            return None
        piece = self._pieces.popleft()
        self._taken += len(piece)
        if self._held is not None:
            self._release(piece)
        return piece

    def _share(self, things: Sequence[_Thing]) -> list[_Thing]:
        admitted = []
        reserve = self._at_most - self._calm
        with self._lock:
            if self._held is None:
                self._held = Counter(self._uid_of(thing) for piece in [*self._pieces] for thing in piece)
            held, free = self._held, self._at_most - len(self)
            for thing in things:
                uid = self._uid_of(thing)
                if free > reserve or held[uid] < free:
                    held[uid] += 1
                    free -= 1
                    admitted.append(thing)
                else:
                    self._crowded.lose(uid, held[uid])
        return admitted

    def _release(self, piece: _Piece) -> None:
        with self._lock:
            held = self._held
            if held is None:
                return
            for thing in piece:
                uid = self._uid_of(thing)
                held[uid] -= 1
                if held[uid] <= 0:
                    del held[uid]
