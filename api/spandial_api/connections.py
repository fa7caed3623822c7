"""The TCP connection that a request came by."""

from __future__ import annotations

from fastapi import Request

from spandial_api.node import Connection

__all__ = ["connection_of"]


def connection_of(request: Request) -> Connection | None:
    """None over the Unix socket."""
    client, server = request.client, request.scope.get("server")
    if client is None or not client.port or server is None or server[1] is None:
        return None
    return Connection(client.host, client.port, server[1])
