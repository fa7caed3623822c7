"""Who may write: over the Unix socket whoever the file system lets in, over TCP whoever has the token."""

from __future__ import annotations

import hmac
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from fastapi import HTTPException, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from spandial_api.selectors import Selector

__all__ = ["Principal", "TrustedListener", "may_write", "read_or_make_token"]

_TRUSTED = "spandial.trusted"


@dataclass(frozen=True)
class Principal:
    """Who asks.

    Attributes:
        name: as the audit log has it.
    """

    name: str

    def check(self, selector: Selector) -> None:
        """Raises HTTPException 403 where this one may not change the rule of this selector."""


class TrustedListener:
    """The same application for a listener whose peers need no token: the socket's mode has admitted them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app({**scope, _TRUSTED: True}, receive, send)


def read_or_make_token(path: Path) -> str:
    """The bearer token, made at the first start in a file only its owner can read. Raises OSError."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        token = path.read_text().strip()
        if token:
            return token
        descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
        os.fchmod(descriptor, 0o600)
    token = secrets.token_urlsafe(32)
    with os.fdopen(descriptor, "w") as file:
        file.write(token + "\n")
    return token


def may_write(request: Request) -> Principal:
    """A dependency of every route that changes something. Raises HTTPException 401."""
    if request.scope.get(_TRUSTED):
        return Principal("local")
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    expected: str = request.app.state.token
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), expected.encode()):
        raise HTTPException(
            401,
            "writing over TCP needs the header 'Authorization: Bearer <token>'; the token is in "
            f"{request.app.state.token_path}",
            headers={"WWW-Authenticate": "Bearer"},
        )
    return Principal("token")
