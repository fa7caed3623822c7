"""By which connection a request came, and in what order the peers get what many of them wait for. Pure but for the
middleware."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from starlette.types import ASGIApp, Receive, Scope, Send

from spandial_api.auth import is_trusted

__all__ = ["PEER", "InTurn", "Peer", "Shares", "TurnLock", "Turns", "peer_of"]

PEER = "spandial.connection"  # in a request's scope


class Peer(NamedTuple):
    """Who has made a connection.

    Attributes:
        name: for whom shares are counted: `uid 1000` where the kernel knows the user, else the address.
        serial: of the connection, which no other has had; 0: not known.
        uid: his user, where the kernel knows him.
    """

    name: str
    serial: int = 0
    uid: int | None = None


def peer_of(scope: Scope) -> Peer:
    """Who has made the connection by which a request came."""
    peer = scope.get(PEER)
    if isinstance(peer, Peer):
        return peer
    client = scope.get("client")
    return Peer(client[0] if client else "somewhere")


class Shares:
    """What there is only so much of, in all and of it for each peer.

    Attributes:
        refused: how often there was not enough.
    """

    def __init__(self, total: int, each: int) -> None:
        self.refused = 0
        self._total, self._each = total, each
        self._taken: Counter[str] = Counter()

    def take(self, peer: str, amount: int = 1) -> bool:
        """Whether there was so much left for this peer; then it is taken."""
        if self._taken.total() + amount > self._total or self._taken[peer] + amount > self._each:
            self.refused += 1
            self.give(peer, 0)
            return False
        self._taken[peer] += amount
        return True

    def give(self, peer: str, amount: int = 1) -> None:
        """Give back what was taken."""
        self._taken[peer] -= amount
        if self._taken[peer] <= 0:
            del self._taken[peer]


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


class InTurn:
    """Middleware: requests over TCP begin in turn. Those over the Unix socket wait for nobody."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._turns = Turns()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not is_trusted(scope):
            await self._turns.take(peer_of(scope).name)
        await self._app(scope, receive, send)
