"""Query parameters: what they look like, and those that no route takes silently, unknown ones and one given twice; and
a request's connection and user."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import HTTPException, Request

from spandial_api.node import Connection
from spandial_api.peers import peer_of

__all__ = ["PRINTABLE_PATTERN", "RATE_PATTERN", "TTL_PATTERN", "connection_of", "only", "uid_of"]

# As the description has them: what everybody writes. `parse_rate` and `parse_duration` take some more, such as 1e-3.
RATE_PATTERN = r"^(100(\.0{1,9})?|[0-9]{1,2}(\.[0-9]{1,9})?)%?$"
TTL_PATTERN = (
    r"^([1-9][0-9]?d([0-9]{1,2}h)?([0-9]{1,2}m)?([0-9]{1,2}s)?|[1-9][0-9]{0,2}h([0-9]{1,2}m)?([0-9]{1,2}s)?"
    r"|[1-9][0-9]{0,3}m([0-9]{1,2}s)?|[1-9][0-9]{0,4}s)$"
)
# Of Latin 1, what Python holds for printable, and not spaces alone.
PRINTABLE_PATTERN = r"^[^\x00-\x1f\x7f-\xa0\xad]*[^\x00-\x20\x7f-\xa0\xad][^\x00-\x1f\x7f-\xa0\xad]*$"


def only(*names: str) -> Callable[[Request], Awaitable[None]]:
    """A dependency that refuses (422) every other parameter, and these if they come more than once. A name that ends
    with a star stands for all that begin so."""
    prefixes = tuple(name[:-1] for name in names if name.endswith("*"))

    async def check(request: Request) -> None:  # FastAPI would have a thread run what is not async
        problems: list[dict[str, object]] = []
        for name in dict.fromkeys(request.query_params):
            received = request.query_params.getlist(name)
            if name not in names and not (prefixes and name.startswith(prefixes)):
                allowed = "no such parameter; there are: " + (", ".join(names) or "none")
                problems.append({"field": name, "received": received[0], "allowed": allowed})
            elif len(received) > 1:
                problems.append({"field": name, "received": received, "allowed": "one value"})
        if problems:
            raise HTTPException(422, problems)

    return check


def connection_of(request: Request) -> Connection | None:
    """The TCP connection that a request came by; None over the Unix socket."""
    client, server = request.client, request.scope.get("server")
    if client is None or not client.port or server is None or server[1] is None:
        return None
    peer = peer_of(request.scope)
    return Connection(client.host, client.port, server[1], server[0], peer.serial, peer.name)


def uid_of(request: Request) -> int | None:
    """The user who sends a request, over TCP or the Unix socket; None where the kernel does not know him."""
    return peer_of(request.scope).uid
