"""Which requests a browser sends for somebody else's page: told by the headers Host, Origin and Sec-Fetch-Site.

A page whose name is made to stand for an address of this host (DNS rebinding) has its own name in Host. A page that
sends a request elsewhere is named in Origin, and Sec-Fetch-Site (Fetch Metadata Request Headers, W3C) says that it is
another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from spandial_api.auth import is_trusted
from spandial_api.host_names import is_own_host

__all__ = ["OwnOrigin", "why_refused"]

_SETTING = "SPANDIAL_HOST_NAMES"
_FOREIGN = ("cross-site", "same-site")
_NEED_TOKENS = ("DELETE", "PATCH", "PUT")


def why_refused(
    headers: Headers, names: Collection[str], *, any_host: bool = False, setting: str = _SETTING
) -> tuple[str, str] | None:
    """Why a request is refused, in one word for the counter and in a sentence; None for one that is not.

    Args:
        names: that this interface has, in lower case.
        any_host: the Host header matters only where a browser sends it, as over a Unix socket.
        setting: where more names are given.
    """
    origin, site, host = headers.get("origin"), headers.get("sec-fetch-site"), headers.get("host", "")
    by_browser = origin is not None or site is not None
    if (by_browser or not any_host) and not is_own_host(host, names):
        return "host", (
            f"the Host header must be an address, localhost or a name of {setting}; received {host[:100]!r}: "
            "ask by an address, or add the name there"
        )
    if origin is not None and origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}"):
        return "origin", f"the page of {origin[:100]!r} may not use this interface: only its own pages may"
    if site in _FOREIGN:
        return "origin", f"a page of another site may not use this interface (Sec-Fetch-Site: {site}): only its own may"
    return None


class OwnOrigin:
    """Middleware: 403 for what `why_refused` refuses, or 401.

    Args:
        names: that this interface has beside addresses and `localhost`.
        refused: where the refusals are counted.
        setting: where more names are given.
    """

    def __init__(
        self,
        app: ASGIApp,
        names: Collection[str] = (),
        refused: Counter[str] | None = None,
        setting: str = _SETTING,
    ) -> None:
        self._app = app
        self._setting = setting
        self._names = frozenset(names)
        self._refused: Counter[str] = Counter() if refused is None else refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, trusted = Headers(scope=scope), is_trusted(scope)
        why = why_refused(headers, self._names, any_host=trusted, setting=self._setting)
        if why is None:
            await self._app(scope, receive, send)
            return
        reason, sentence = why
        self._refused[reason] += 1
        status, more = 403, {"Connection": "close"}
        if reason == "origin" and scope["method"] in _NEED_TOKENS and "authorization" not in headers and not trusted:
            status, more = 401, {**more, "WWW-Authenticate": "Bearer"}  # a token is missing anyway
        await JSONResponse({"detail": sentence}, status, more)(scope, receive, send)
