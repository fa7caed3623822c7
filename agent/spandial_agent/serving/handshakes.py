"""How many handshakes of TLS may be going on: each has a buffer of 256 KiB, and nobody knows yet whose it is."""

from __future__ import annotations

import socket
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

__all__ = ["HANDSHAKE_S", "Handshakes", "TlsListener"]

HANDSHAKE_S = 5.0


class Handshakes:
    """Those that are going on, by address. One that has failed counts until its time is over.

    Args:
        total: how many there may be.
        each: how many of one address.
        now: seconds of a monotonic clock.

    Attributes:
        refused: where those are counted that were, as "handshakes".
    """

    def __init__(self, total: int = 128, each: int = 16, now: Callable[[], float] = time.monotonic) -> None:
        self.refused: Counter[str] = Counter()
        self._total, self._each, self._now = total, each, now
        self._going_on: Counter[str] = Counter()
        self._begun: deque[tuple[float, str]] = deque()
        self._done: Counter[str] = Counter()  # of those that are in `_begun` still

    def begin(self, address: str) -> bool:
        """Whether one more may begin."""
        before = self._now() - HANDSHAKE_S
        while self._begun and self._begun[0][0] < before:
            _, over = self._begun.popleft()
            if self._done[over]:
                self._less(self._done, over)
            else:
                self._less(self._going_on, over)
        if self._going_on.total() >= self._total or self._going_on[address] >= self._each:
            self.refused["handshakes"] += 1
            return False
        self._going_on[address] += 1
        self._begun.append((self._now(), address))
        return True

    def done(self, address: str) -> None:
        """One has succeeded."""
        if self._going_on[address]:
            self._less(self._going_on, address)
            self._done[address] += 1

    def _less(self, counter: Counter[str], address: str) -> None:
        counter[address] -= 1
        if counter[address] <= 0:
            del counter[address]


class TlsListener(socket.socket):
    """A listening socket that closes the connections that are too many before their handshakes begin.

    Attributes:
        handshakes: those of its connections.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.handshakes = Handshakes()

    def accept(self) -> tuple[socket.socket, Any]:
        """Raises ConnectionAbortedError for one that is too many, as where the client has gone."""
        accepted, address = super().accept()
        if not self.handshakes.begin(address[0]):
            accepted.close()
            raise ConnectionAbortedError
        return accepted, address
