"""How long a request's body may be: it is read before anybody knows who sends it."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["BODY_MAX", "BodyLimit"]

BODY_MAX = 1 << 20  # bytes


class BodyLimit:
    """Middleware: who reads a longer body gets HTTPException 413 before it is in memory."""

    def __init__(self, app: ASGIApp, longest: int = BODY_MAX) -> None:
        self._app = app
        self._longest = longest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        read = 0

        async def limited() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._longest:
                raise HTTPException(413, f"a body has at most {self._longest} bytes; nothing was changed")
            return message

        await self._app(scope, limited, send)
