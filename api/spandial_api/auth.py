"""Who asks, and what he may: over the Unix socket whoever the file system lets in, over TCP who has a token."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, HTTPException, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.types import ASGIApp, Receive, Scope, Send

from spandial_api import tokens
from spandial_api.bindings import EVERYTHING, covers
from spandial_api.selectors import Selector, selector_text
from spandial_api.token_file import TokenFile
from spandial_api.tokens import SCOPES
from spandial_api.write_limit import RateLimit

__all__ = [
    "REFUSALS",
    "Access",
    "KnownFirst",
    "Principal",
    "Refusal",
    "TrustedListener",
    "is_trusted",
    "may_admin",
    "may_read",
    "may_write",
]

_PEER = "spandial.peer"

_FAILURES_PER_SECOND = 10.0


class Refused(BaseModel):
    """Why somebody may not."""

    detail: str


REFUSALS: dict[int | str, dict[str, Any]] = {
    401: {"model": Refused, "description": "No token, or one that is not known, where one is needed."},
    403: {"model": Refused, "description": "The token's scope or what it is bound to does not allow this."},
    429: {"model": Refused, "description": "Too many changes, or too many requests without a right token."},
}
"""For the description of every route."""


class Refusal(HTTPException):
    """The answer to somebody who may not. Nothing was changed.

    Attributes:
        reason: in one word, for the counter.
    """

    def __init__(self, status: int, sentence: str, reason: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(status, sentence, headers)
        self.reason = reason


@dataclass(frozen=True)
class Principal:
    """Who asks.

    Attributes:
        name: as the audit log has it: `uid 0`, `token ci`.
        scopes: what this one may do.
        binding: the rules that this one may touch; without a field, all.
    """

    name: str
    scopes: frozenset[tokens.Scope]
    binding: Selector = EVERYTHING

    def check(self, selector: Selector) -> None:
        """Raises HTTPException 403 where this one may not change the rule of this selector."""
        if not covers(self.binding, selector):
            may, asked = selector_text(self.binding), selector_text(selector)
            sentence = f"{self.name} may only touch rules inside of {may}, and this one is for {asked}"
            raise Refusal(403, f"{sentence}; nothing was changed", "binding")

    def check_scope(self, scope: tokens.Scope) -> None:
        """Raises HTTPException 403."""
        if scope not in self.scopes:
            has = " and ".join(sorted(self.scopes)) or "nothing"
            raise Refusal(403, f"{self.name} may {has}, and this needs the scope {scope}", "scope")


class TrustedListener:
    """The same application for a listener whose peers need no token: the socket's mode has admitted them.

    Args:
        uid: the peer's, where it is known.
    """

    def __init__(self, app: ASGIApp, uid: int | None = None) -> None:
        self._app = app
        self._peer = Principal("local" if uid is None else f"uid {uid}", SCOPES["admin"])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app({**scope, _PEER: self._peer}, receive, send)


def is_trusted(scope: Scope) -> bool:
    """Whether a request came by a listener whose peers need no token."""
    return isinstance(scope.get(_PEER), Principal)


class Access:
    """Who is let in over TCP, and how often.

    Args:
        read_without_token: whether everybody who reaches the listener may read.
        writes_per_second: by one principal, twice as many at once; 0 for no limit.
        now: seconds of a monotonic clock.

    Attributes:
        refused: requests, by reason.
    """

    def __init__(
        self,
        token_file: TokenFile,
        *,
        read_without_token: bool = True,
        writes_per_second: float = 0.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.token_file = token_file
        self.read_without_token = read_without_token
        self.refused: Counter[str] = Counter()
        self._now = now
        self._writes = RateLimit(writes_per_second, max(2 * writes_per_second, 1.0))
        self._failures = RateLimit(_FAILURES_PER_SECOND, 2 * _FAILURES_PER_SECOND)

    def identify(self, authorization: str) -> Principal | str:
        """Who sends this header's value, or why nobody is known by it."""
        scheme, _, given = authorization.partition(" ")
        if scheme.lower() != "bearer" or not given.strip():
            return ""
        token = self.token_file.refresh().find(given.strip())
        if token is None:
            return "this token is not known here. "
        if token.expires is not None and token.expires <= time.time():
            return f"the token {token.name} has expired. "
        return Principal(f"token {token.name}", SCOPES[token.scope], token.binding)

    def fail(self, peer: str, why: str) -> Refusal:
        """The answer to somebody who is not known. A right token is never kept out by what others fail with."""
        wait = self._failures.take(peer, self._now())
        if wait:
            sentence = f"too many requests without a right token came from {peer}"
            return Refusal(429, sentence, "failures", {"Retry-After": str(math.ceil(wait))})
        sentence = (
            f"{why}this needs the header 'Authorization: Bearer <token>': 'spandial token add' on the node makes one, "
            f"and the operator's is in {self.token_file.operator_path}"
        )
        return Refusal(401, sentence, "unauthenticated", {"WWW-Authenticate": "Bearer"})

    def check_reader(self, authorization: str, peer: str) -> None:
        """`may_read` for what does not come by HTTP. Raises Refusal, which is counted."""
        try:
            identified = self.identify(authorization)
            if isinstance(identified, Principal):
                identified.check_scope("read")
            elif not self.read_without_token:
                raise self.fail(peer, identified)
        except Refusal as refusal:
            self.refused[refusal.reason] += 1
            raise

    def take_write(self, principal: Principal) -> None:
        """Raises HTTPException 429."""
        wait = self._writes.take(principal.name, self._now())
        if wait:
            sentence = (
                f"{principal.name} writes more often than SPANDIAL_WRITES_PER_SECOND allows; nothing was changed, "
                f"and in {wait:.2g} s it may again"
            )
            raise Refusal(429, sentence, "rate", {"Retry-After": str(math.ceil(wait))})


def _access(request: Request) -> Access:
    access: Access = request.app.state.access
    return access


async def _identified(request: Request) -> Principal | str:
    peer = request.scope.get(_PEER)
    if isinstance(peer, Principal):
        return peer
    return _access(request).identify(request.headers.get("authorization", ""))


_Identified = Annotated[Principal | str, Depends(_identified)]


async def may_read(request: Request, identified: _Identified) -> Principal:
    """A dependency of every route but health. Raises HTTPException 401, 403, 429."""
    if isinstance(identified, Principal):
        identified.check_scope("read")
        return identified
    if not _access(request).read_without_token:
        raise _failed(request, identified)
    return Principal("anonymous", frozenset({"read"}))


async def may_write(request: Request, identified: _Identified) -> Principal:
    """A dependency of every route that changes something. Raises HTTPException 401, 403, 429."""
    principal = _known(request, identified)
    principal.check_scope("write")
    _access(request).take_write(principal)
    return principal


async def may_admin(request: Request, identified: _Identified) -> Principal:
    """A dependency of routes that are nobody's but the operator's. Raises HTTPException 401, 403, 429."""
    principal = _known(request, identified)
    principal.check_scope("admin")
    _access(request).take_write(principal)
    return principal


class KnownFirst(APIRoute):
    """A route that changes something, and has a body: no part of it is read for who may not write."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_known(request: Request) -> Response:
            if self.body_field is not None:
                _known(request, await _identified(request)).check_scope("write")
            return await handle(request)

        return handle_known


def _known(request: Request, identified: Principal | str) -> Principal:
    if isinstance(identified, Principal):
        return identified
    raise _failed(request, identified)


def _failed(request: Request, why: str) -> Refusal:
    peer = request.client.host if request.client else "somewhere"
    return _access(request).fail(peer, why)
