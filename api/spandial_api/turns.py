"""In what order peers get what many of them wait for: each in turn, however often one of them waits."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

__all__ = ["TurnLock", "Turns"]


class _Waiting:
    """Who waits, of each peer in turn."""

    def __init__(self) -> None:
        self._by_peer: dict[str, deque[asyncio.Future[None]]] = {}  # the next one first

    def __bool__(self) -> bool:
        return bool(self._by_peer)

    def add(self, peer: str) -> asyncio.Future[None]:
        """What is done once it is this one's turn."""
        turn = asyncio.get_running_loop().create_future()
        self._by_peer.setdefault(peer, deque()).append(turn)
        return turn

    def begin(self) -> bool:
        """Whether anybody was waiting: it is the next one's turn now."""
        while self._by_peer:
            peer = next(iter(self._by_peer))
            waiting = self._by_peer.pop(peer)
            turn = waiting.popleft()
            if waiting:
                self._by_peer[peer] = waiting  # behind the others
            if not turn.done():  # else who waited has been cancelled
                turn.set_result(None)
                return True
        return False


class Turns:
    """One request begins in each round of the event loop, of each peer in turn: however many ask, what else the loop
    has to do waits for one of them at most."""

    def __init__(self) -> None:
        self._waiting = _Waiting()

    async def take(self, peer: str) -> None:
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._next, loop)
        await self._waiting.add(peer)

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        self._waiting.begin()
        if self._waiting:
            loop.call_soon(self._next, loop)


class TurnLock:
    """A lock that the peers who wait for it get in turn: however often one waits, another waits for one of his turns at
    most."""

    def __init__(self) -> None:
        self._held = False
        self._waiting = _Waiting()

    @asynccontextmanager
    async def turn(self, peer: str) -> AsyncIterator[None]:
        """Hold it in here."""
        if self._held:
            turn = self._waiting.add(peer)
            try:
                await turn
            except asyncio.CancelledError:
                if not turn.cancelled():  # it was passed on to this one already
                    self._pass_on()
                raise
        self._held = True
        try:
            yield
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        self._held = self._waiting.begin()
