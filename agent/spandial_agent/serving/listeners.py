"""The HTTP listeners: TCP, with or without TLS, where tokens decide, and a Unix socket, where the file's mode does."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import uvicorn
from starlette.types import ASGIApp

from spandial_agent.serving.connections import BoundedProtocol, Connections
from spandial_agent.serving.handshakes import HANDSHAKE_S, TlsListener

__all__ = ["accept", "count_handshakes", "serve", "serve_tcp"]

_RENEW_S = 1.0
_TLS_CONNECTIONS, _TLS_CONNECTIONS_OF_A_PEER = 256, 64  # each has a buffer of 256 KiB
_BACKLOG = 512
_ACCEPTED_AT_ONCE = 4  # asyncio accepts as many as the backlog in one round of its loop, and nothing else meanwhile
_HEAD_MAX = 32 << 10  # bytes of a request's line and headers


async def accept(
    protocol: Callable[[], asyncio.BaseProtocol], listener: socket.socket, tls: ssl.SSLContext | None = None
) -> asyncio.Server:
    """Accept a bound socket's connections, few at once, and wait only so long for each handshake."""
    server = await asyncio.get_running_loop().create_server(
        protocol,
        sock=listener,
        ssl=tls,
        ssl_handshake_timeout=HANDSHAKE_S if tls is not None else None,
        backlog=_ACCEPTED_AT_ONCE,
    )
    listener.listen(_BACKLOG)
    return server


def count_handshakes(listener: socket.socket, connections: Connections) -> None:
    """Tell a listener with TLS which of its handshakes have led to connections, and count those that are refused."""
    if isinstance(listener, TlsListener):
        connections.on_made = listener.handshakes.done
        listener.handshakes.refused = connections.refused


class _Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's own would wait a minute for a handshake, and accept as many at once as may wait."""
        self.servers = [await accept(self._protocol, listener, self.config.ssl) for listener in sockets or ()]
        self.started = True

    def _protocol(self) -> asyncio.Protocol:
        make: Callable[..., asyncio.Protocol] = self.config.http_protocol_class
        return make(config=self.config, server_state=self.server_state, app_state={})

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the composition root's."""
        yield


async def serve(
    app: ASGIApp,
    tcp: socket.socket,
    unix: socket.socket,
    stop: asyncio.Event,
    end_streams: Callable[[], None] = lambda: None,
    tls: ssl.SSLContext | None = None,
    renewed: Callable[[], socket.socket | None] = lambda: None,
    refused: Counter[str] | None = None,
) -> None:
    """Serve on both until told to stop. Whatever is not done a second later is cancelled, and nothing runs on after
    this returns.

    Args:
        end_streams: called when told to stop, to end the answers that would not end by themselves.
        tls: of the TCP listener.
        renewed: asked every second for a Unix socket that takes the place of the one before.
        refused: where the connections over TCP are counted that were ended for the others' sake, and handshakes of TLS
            that were too many, by reason.
    """
    unix_peers = Connections()
    tcp_peers = Connections(refused=refused)
    if tls is not None:
        tcp_peers = Connections(_TLS_CONNECTIONS, _TLS_CONNECTIONS_OF_A_PEER, refused=refused)
    over_unix = _config(app, functools.partial(BoundedProtocol, connections=unix_peers, trusted=True))
    servers = [(_over_tcp(app, tcp, tcp_peers, tls), tcp), (_Server(over_unix), unix)]

    async def stopper() -> None:
        await stop.wait()
        end_streams()
        for server, _ in servers:
            server.should_exit = True

    async def renewer() -> None:
        running = []
        while not stop.is_set():
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(stop.wait(), _RENEW_S)
            listener = None if stop.is_set() else renewed()
            if listener is not None:
                for gone in servers[-1][0].servers:  # who is connected stays connected
                    gone.close()
                servers.append((_Server(over_unix), listener))
                running.append(asyncio.create_task(servers[-1][0].serve(sockets=[listener])))
        await asyncio.gather(*running)

    sweeping = [asyncio.create_task(peers.run()) for peers in (tcp_peers, unix_peers)]
    try:
        await asyncio.gather(stopper(), renewer(), *(server.serve(sockets=[listener]) for server, listener in servers))
    finally:
        for task in sweeping:
            task.cancel()
    await _ended(server for server, _ in servers)


async def serve_tcp(
    app: ASGIApp,
    tcp: socket.socket,
    stop: asyncio.Event,
    connections: Connections,
    tls: ssl.SSLContext | None = None,
) -> None:
    """Serve on one TCP socket until told to stop, and then until all that was asked is answered."""
    server = _over_tcp(app, tcp, connections, tls)
    server.config.timeout_graceful_shutdown = None

    async def stopper() -> None:
        await stop.wait()
        server.should_exit = True

    sweeping = asyncio.create_task(connections.run())
    try:
        await asyncio.gather(stopper(), server.serve(sockets=[tcp]))
    finally:
        sweeping.cancel()
    await _ended([server])


def _over_tcp(app: ASGIApp, tcp: socket.socket, connections: Connections, tls: ssl.SSLContext | None) -> _Server:
    count_handshakes(tcp, connections)
    config = _config(app, functools.partial(BoundedProtocol, connections=connections))
    if tls is not None:
        config.ssl_context_factory = lambda config, default: tls
    return _Server(config)


async def _ended(servers: Iterable[_Server]) -> None:
    """uvicorn cancels what is late, and does not wait for it."""
    late = [task for server in servers for task in server.server_state.tasks]
    if late:
        await asyncio.wait(late, timeout=1)


def _config(app: ASGIApp, protocol: Callable[..., asyncio.Protocol]) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=protocol,  # type: ignore[arg-type]
        ws="none",
        h11_max_incomplete_event_size=_HEAD_MAX,
        backlog=_ACCEPTED_AT_ONCE,
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=1,
        proxy_headers=False,
    )
