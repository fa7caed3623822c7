"""A listener of HTTP/2."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from h2.errors import ErrorCodes

from spandial_agent.serving.connections import Connections
from spandial_agent.serving.http2 import FRAME_MAX, Answer, Http2Connection, Shares
from spandial_agent.serving.listeners import accept, count_handshakes
from spandial_api.node import Connection

__all__ = ["Http2Server"]

_GRACE_S = 1.0
_RECEIVED_MAX = 16 << 10  # bytes of a connection that the kernel keeps; asyncio reads all of them at once


class Http2Server:
    """The connections of one listener.

    Args:
        answer: to a request. It raises nothing.
        connections: bounds them.
    """

    def __init__(self, answer: Answer, connections: Connections) -> None:
        self._shares = Shares(answer, connections)
        self._connections = connections
        self._clients: dict[asyncio.Task[None], Http2Connection] = {}

    @asynccontextmanager
    async def running(self, listener: socket.socket, tls: ssl.SSLContext | None = None) -> AsyncIterator[None]:
        """Accept until left; then end all connections, when what was asked is answered, or a second later."""
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVED_MAX)  # and of those that are accepted
        count_handshakes(listener, self._connections)
        server = await accept(self._protocol, listener, tls)
        sweeping = asyncio.create_task(self._connections.run())
        try:
            yield
        finally:
            self._shares.ending = True
            sweeping.cancel()
            server.close()
            if answers := [answer for client in self._clients.values() for answer in client.answers.values()]:
                await asyncio.wait(answers, timeout=_GRACE_S)
            for client in self._clients.values():
                client.close(ErrorCodes.NO_ERROR)
            if self._clients:
                await asyncio.wait(self._clients)

    def _protocol(self) -> asyncio.StreamReaderProtocol:
        return asyncio.StreamReaderProtocol(asyncio.StreamReader(limit=FRAME_MAX), self._made)

    def _made(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client, server = writer.get_extra_info("peername"), writer.get_extra_info("sockname")
        if not client or not server:  # it has gone already
            writer.transport.abort()
            return
        self._connections.on_made(client[0])
        peer = self._connections.peers.at(client[:2], server[:2])
        connection = Connection(client[0], client[1], server[1], server[0], peer.serial, peer.name)
        made = Http2Connection(self._shares, peer, connection, reader, writer)
        if not self._connections.admit(made, peer.name):
            writer.transport.abort()
            return
        made.task = asyncio.create_task(made.run())
        self._clients[made.task] = made
        made.task.add_done_callback(self._gone)

    def _gone(self, task: asyncio.Task[None]) -> None:
        client = self._clients.pop(task)
        self._connections.leave(client, client.peer.name)
