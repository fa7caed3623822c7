"""A listener for a server that cannot bound its own connections: HTTP/2 is passed on to its Unix socket, by peer.

gRPC's server knows no limit of connections by peer and no end of a request that does not come, and does not say what
:authority it is asked by. So each connection is accepted here, as those of HTTP/1.1 are, and read along.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.datastructures import Headers

from spandial_agent.errors import SpandialError
from spandial_agent.serving.connections import Connections
from spandial_agent.serving.listeners import accept, count_handshakes
from spandial_agent.serving.request_heads import PREFACE, NotHttp2, RequestHeads
from spandial_api.node import Connection
from spandial_api.origins import why_refused
from spandial_api.peers import Peer, Turns
from spandial_api.write_limit import RateLimit

__all__ = ["Http2Proxy", "Proxied"]

_REQUESTS_PER_SECOND = 100  # of a peer: a server that has many before it refuses any peer's (gRPC: from 1,000 on)
_PIECE = 4 << 10  # bytes that are passed on at once
_RECEIVED_MAX = 16 << 10  # bytes of a connection that the kernel keeps; asyncio reads all of them at once


class Http2Proxy:
    """The connections of one listener, each passed on by one of its own.

    Args:
        path: the server's Unix socket, which nobody else can connect to.
        connections: bounds them.
        host_names: that the server has beside addresses and `localhost`.

    Attributes:
        renew: has the server listen there again, after somebody has removed its socket. Raises OSError.
    """

    def __init__(self, path: Path, connections: Connections, host_names: Collection[str] = ()) -> None:
        self.path = path
        self.connections = connections
        self.host_names = frozenset(host_names)
        self.renew: Callable[[], Awaitable[None]] = _impossible
        self._renewing = asyncio.Lock()
        self._turns = Turns()
        self._requests = RateLimit(_REQUESTS_PER_SECOND, 2 * _REQUESTS_PER_SECOND)
        self._by_name: dict[str, Proxied] = {}
        self._running: set[asyncio.Task[None]] = set()

    def by(self, name: str) -> Proxied | None:
        """The connection that is passed on by the Unix socket of this abstract name."""
        return self._by_name.get(name)

    async def begin(self, peer: str) -> None:
        """Wait until a request of this peer may begin."""
        wait = self._requests.take(peer, self.connections.now())
        while wait:
            await asyncio.sleep(wait)
            wait = self._requests.take(peer, self.connections.now())
        await self._turns.take(peer)

    @asynccontextmanager
    async def running(self, listener: socket.socket, tls: ssl.SSLContext | None = None) -> AsyncIterator[None]:
        """Accept until left; then end all connections."""
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVED_MAX)  # and of those that are accepted
        count_handshakes(listener, self.connections)
        server = await accept(self._protocol, listener, tls)
        sweeping = asyncio.create_task(self.connections.run())
        try:
            yield
        finally:
            sweeping.cancel()
            server.close()
            for task in self._running:
                task.cancel()
            if self._running:
                await asyncio.wait(self._running)

    async def _connect(self, own: socket.socket) -> None:
        """Connect to the server, which listens anew where somebody has removed its socket. Raises OSError."""
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_connect(own, str(self.path))
        except FileNotFoundError:
            async with self._renewing:
                if not self.path.exists():
                    await self.renew()
            await loop.sock_connect(own, str(self.path))

    def _protocol(self) -> asyncio.StreamReaderProtocol:
        return asyncio.StreamReaderProtocol(asyncio.StreamReader(limit=_PIECE), self._made)

    def _made(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client, server = writer.get_extra_info("peername"), writer.get_extra_info("sockname")
        if not client or not server:  # it has gone already
            writer.transport.abort()
            return
        self.connections.on_made(client[0])
        peer = self.connections.peers.at(client[:2], server[:2])
        made = Proxied(self, peer, Connection(client[0], client[1], server[1], server[0], peer.serial), reader, writer)
        if not self.connections.admit(made, peer.name):
            writer.transport.abort()
            return
        made.task = asyncio.create_task(self._pass_on(made))
        self._running.add(made.task)
        made.task.add_done_callback(self._running.discard)

    async def _pass_on(self, made: Proxied) -> None:
        name = ""
        try:
            await made.begin()
            own = _named()
            name = own.getsockname()[1:].decode()
            self._by_name[name] = made
            try:
                await self._connect(own)
            except BaseException:
                own.close()
                raise
            await made.pass_on(own)
        except NotHttp2:
            self.connections.refused["protocol"] += 1
        except (OSError, EOFError, SpandialError):
            pass  # one of both has gone
        finally:
            self._by_name.pop(name, None)
            made.close()


class Proxied:
    """One connection.

    Attributes:
        peer: who has made it.
        connection: its addresses.
        refusal: why nothing that comes by it is answered, in one word and in a sentence.
        answering: how many requests are being answered.
        since: when it was made, or a request was answered.
    """

    def __init__(
        self,
        proxy: Http2Proxy,
        peer: Peer,
        connection: Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.peer = peer
        self.connection = connection
        self.refusal: tuple[str, str] | None = None
        self.answering = 0
        self.since = proxy.connections.now()
        self.task: asyncio.Task[None] | None = None
        self._proxy = proxy
        self._now = proxy.connections.now
        self._reader, self._writer = reader, writer
        self._heads = RequestHeads()
        self._stuck_since: float | None = None

    @property
    def idle(self) -> bool:
        return not self.answering

    def waited_for(self, before: float) -> str:
        if self._stuck_since is not None and self._stuck_since < before:
            return "unread"
        heads = self._heads
        if not heads.is_http2 and self.since < before:
            return "head"
        if heads.begun is not None and heads.begun < before:
            return "head"
        return "body" if heads.open and next(iter(heads.open.values())) < before else ""

    def end(self, status: int, sentence: str) -> None:
        """HTTP/2 has no answer for a connection: gRPC's clients try again later by themselves."""
        self._proxy.connections.leave(self, self.peer.name)
        self._writer.transport.abort()
        if self.task is not None:
            self.task.cancel()

    def answered(self) -> None:
        self.answering -= 1
        self.since = self._now()

    async def begin(self) -> None:
        """Wait until the client has begun as HTTP/2 does. Raises OSError, EOFError, NotHttp2."""
        self._heads.take(await self._reader.readexactly(len(PREFACE)), self._now())

    async def pass_on(self, own: socket.socket) -> None:
        """Until one of both sides ends. Raises OSError, NotHttp2."""
        reader, writer = await asyncio.open_unix_connection(sock=own, limit=_PIECE)
        writer.write(PREFACE)
        ways = [asyncio.ensure_future(self._to_server(writer)), asyncio.ensure_future(self._to_client(reader))]
        try:
            done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in done:
                way.result()
        finally:
            for way in ways:
                way.cancel()
            await asyncio.wait(ways)
            writer.transport.abort()

    def close(self) -> None:
        """What was sent last is still to be read: it may say why nothing more comes."""
        self._proxy.connections.leave(self, self.peer.name)
        self._writer.close()
        if self._writer.transport.get_write_buffer_size() or self._writer.get_extra_info("sslcontext") is not None:
            self._writer.transport.abort()  # who does not read now never will, nor say goodbye

    async def _to_server(self, server: asyncio.StreamWriter) -> None:
        while data := await self._reader.read(_PIECE):
            rest = memoryview(data)
            while rest:
                length, head = self._heads.take(rest, self._now())
                if head is not None:
                    self._look_at(head)
                    await self._proxy.begin(self.peer.name)
                server.write(bytes(rest[:length]))
                rest = rest[length:]
            await server.drain()

    async def _to_client(self, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(_PIECE):
            self._writer.write(data)
            self._stuck_since = self._now()
            await self._writer.drain()
            self._stuck_since = None

    def _look_at(self, head: dict[str, str]) -> None:
        """By which name the server is asked, as over HTTP/1.1 (spandial_api/origins.py)."""
        if ":authority" in head:
            head = {**head, "host": head[":authority"]}
        headers = Headers({name: head[name] for name in ("host", "origin", "sec-fetch-site") if name in head})
        self.refusal = self.refusal or why_refused(headers, self._proxy.host_names)


async def _impossible() -> None:
    raise FileNotFoundError


def _named() -> socket.socket:
    """A Unix socket with an abstract name that the kernel chooses and nobody else has (unix(7), Autobind)."""
    own = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    own.setblocking(False)
    own.bind("")
    return own
