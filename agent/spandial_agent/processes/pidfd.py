"""Processes by descriptors, which stand for one process for ever (pidfd_open(2), unix(7))."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct

__all__ = ["has_ended", "peer_pidfd"]

# include/uapi/asm-generic/socket.h; Linux 6.5 (7b26952a91cf). The architectures that number it otherwise (parisc,
# sparc) have no BPF JIT that the agent's programs are made for.
_SO_PEERPIDFD = 77
_INT = struct.Struct("i")


def peer_pidfd(peer: socket.socket, pid: int) -> int:
    """A descriptor of the process that called connect(2).

    Before Linux 6.5 it is that of the process which has the pid now. Raises OSError: the process has ended, or there
    are no descriptors left.
    """
    try:
        return int(_INT.unpack(peer.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD, _INT.size))[0])
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
    return os.pidfd_open(pid)


def has_ended(pidfd: int) -> bool:
    """Whether the process has ended, waited for or not."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))
