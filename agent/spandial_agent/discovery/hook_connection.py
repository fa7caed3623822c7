"""A process's connection to the application-facing socket, and whose it is."""

from __future__ import annotations

import os
import socket
import struct

from spandial_agent.processes.counter_page import CounterPage
from spandial_agent.processes.pidfd import has_ended, peer_pidfd
from spandial_agent.targets.target import Target

__all__ = ["Connection"]

_UCRED = struct.Struct("iII")


class Connection:
    """
    Attributes:
        pid, uid: whose it is, as of its connect(2).
        pidfd: the same process, until it has registered.
    """

    def __init__(self, peer: socket.socket) -> None:
        """Raises OSError: it is nobody's any more, or there are no descriptors left."""
        self.peer = peer
        self.pid, self.uid, _ = _UCRED.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        self.pidfd: int | None = peer_pidfd(peer, self.pid) if self.pid > 0 else None
        self.target: Target | None = None
        self.page: CounterPage | None = None

    def lives(self) -> bool:
        """Whether the process that connected has not ended: what its pid shows then is its own."""
        return self.pidfd is not None and not has_ended(self.pidfd)

    def forget_pidfd(self) -> None:
        if self.pidfd is not None:
            os.close(self.pidfd)
            self.pidfd = None
