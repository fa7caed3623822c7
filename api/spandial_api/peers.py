"""By which connection a request came, what each peer may have, and requests that begin in turn."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from starlette.types import ASGIApp, Receive, Scope, Send

from spandial_api.auth import is_trusted
from spandial_api.turns import Turns

__all__ = ["PEER", "InTurn", "Peer", "Shares", "peer_of"]

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


class InTurn:
    """Middleware: requests over TCP begin in turn. Those over the Unix socket wait for nobody."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._turns = Turns()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not is_trusted(scope):
            await self._turns.take(peer_of(scope).name)
        await self._app(scope, receive, send)
