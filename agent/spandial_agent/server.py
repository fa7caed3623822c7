"""The HTTP listeners: TCP, where writing needs the token, and a Unix socket, where the file's mode decides."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from spandial_agent.errors import SpandialError
from spandial_api.auth import TrustedListener

__all__ = ["bind_tcp", "bind_unix", "serve"]


def bind_tcp(host: str, port: int) -> socket.socket:
    """Raises SpandialError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise SpandialError(
            f"cannot listen on {host}:{port} ({error.strerror}): is another agent running? "
            "SPANDIAL_PORT sets another port"
        ) from error
    return listener


def bind_unix(path: Path, group: str) -> socket.socket:
    """A socket for root and, if there is one of that name, a group. Raises OSError.

    uvicorn's own `uds=` would let everybody in.
    """
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(mask)
    with contextlib.suppress(KeyError):
        os.chown(path, -1, grp.getgrnam(group).gr_gid)
        os.chmod(path, 0o660)
    listener.listen(128)
    return listener


class _Server(uvicorn.Server):
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
) -> None:
    """Serve on both until told to stop. Whatever is not done a second later is cancelled, and nothing runs on after
    this returns.

    Args:
        end_streams: called when told to stop, to end the answers that would not end by themselves.
    """
    servers = []
    for listener, served in ((tcp, app), (unix, TrustedListener(app))):
        config = uvicorn.Config(
            served,
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=1,
            proxy_headers=False,
        )
        servers.append((_Server(config), listener))

    async def stopper() -> None:
        await stop.wait()
        end_streams()
        for server, _ in servers:
            server.should_exit = True

    await asyncio.gather(stopper(), *(server.serve(sockets=[listener]) for server, listener in servers))
    # uvicorn cancels what is late, and does not wait for it.
    late = [task for server, _ in servers for task in server.server_state.tasks]
    if late:
        await asyncio.wait(late, timeout=1)
