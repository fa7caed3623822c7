"""The sockets of the HTTP interface: who connects before it is served waits in their queues."""

from __future__ import annotations

import contextlib
import errno
import grp
import ipaddress
import os
import socket
from pathlib import Path

from spandial_agent.errors import SpandialError
from spandial_agent.serving.handshakes import TlsListener

__all__ = ["bind_tcp", "bind_unix", "is_loopback"]


def is_loopback(listener: socket.socket) -> bool:
    """Whether only this host can connect to a bound TCP socket."""
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def bind_tcp(
    host: str, port: int, *, tls: bool = False, purpose: str = "", setting: str = "SPANDIAL_PORT"
) -> socket.socket:
    """Raises SpandialError, also for an address that other hosts reach, unless there is TLS.

    Args:
        purpose, setting: what it is for and where its port is set, for the error.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named: asyncio sets TCP_NODELAY on no other, and answers would wait 40 ms for the client's ACK.
    listener = (TlsListener if tls else socket.socket)(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        # The address and not the name: nobody can connect yet, and what a name stands for may change.
        if not tls and not is_loopback(listener):
            raise SpandialError(
                f"SPANDIAL_HOST={host} is an address that other hosts reach, and tokens would go there in clear: set "
                "SPANDIAL_TLS_CERT and SPANDIAL_TLS_KEY (SPANDIAL_TLS_CLIENT_CA for mTLS), or SPANDIAL_HOST=127.0.0.1"
            )
        listener.listen(128)
    except OSError as error:
        listener.close()
        help = f"is SPANDIAL_HOST={host} an address of this host?"
        if error.errno == errno.EADDRINUSE:
            help = f"is another agent running? {setting} sets another port"
        raise SpandialError(f"cannot listen on {host}:{port}{purpose} ({error.strerror}): {help}") from error
    except BaseException:
        listener.close()
        raise
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
