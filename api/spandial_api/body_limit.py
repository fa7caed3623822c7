"""How long a request's body may be, and how much of bodies may be in memory at a time."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spandial_api.peers import Shares, peer_of

__all__ = ["BODY_MAX", "BodyLimit"]

BODY_MAX = 1 << 20  # bytes
_ALL_BODIES = 24 << 20  # bytes of requests that are not answered yet
_BODIES_OF_A_PEER = 8 << 20


class BodyLimit:
    """Middleware: who reads a longer body gets HTTPException 413 before it is in memory, and 503 while there are too
    many others."""

    def __init__(
        self,
        app: ASGIApp,
        longest: int = BODY_MAX,
        all_bodies: int = _ALL_BODIES,
        of_a_peer: int = _BODIES_OF_A_PEER,
    ) -> None:
        self._app = app
        self._longest = longest
        self._shares = Shares(all_bodies, of_a_peer)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        read, taken = 0, 0
        peer = peer_of(scope).name

        async def limited() -> Message:
            nonlocal read, taken
            message = await receive()
            part = len(message.get("body", b""))
            read += part
            if read > self._longest:
                raise HTTPException(413, f"a body has at most {self._longest} bytes; nothing was changed")
            if part and not self._shares.take(peer, part):
                sentence = "too many bodies are being received: send this again later; nothing was changed"
                raise HTTPException(503, sentence, {"Retry-After": "1", "Connection": "close"})
            taken += part
            return message

        try:
            await self._app(scope, limited, send)
        finally:
            self._shares.give(peer, taken)
