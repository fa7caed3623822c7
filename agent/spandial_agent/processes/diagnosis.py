"""Whose the other end of a TCP connection is, where it is on this host: one question to the kernel, and no list.

Socket diagnosis (sock_diag(7)) of a single socket: struct inet_diag_req_v2 and inet_diag_msg of
include/uapi/linux/inet_diag.h. It answers for the network namespace of the agent.
"""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from ipaddress import ip_address
from typing import NamedTuple

from spandial_agent.processes.sockets import Endpoint, canonical_address

__all__ = ["Diagnosis", "Owner"]

_SOCK_DIAG_BY_FAMILY = 20
_REQUEST = 1  # NLM_F_REQUEST
_NETLINK_SOCK_DIAG = 4
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_ASKED = struct.Struct("=BBBxI2s2s16s16sIII")
_SAID = struct.Struct("=BBBB2s2s16s16sIII5I")
_ANY_STATE = 0xFFFFFFFF
_NO_COOKIE = 0xFFFFFFFF
_LISTEN = 10  # include/net/tcp_states.h


class Owner(NamedTuple):
    """The user who has made a socket, and the inode by which processes have it open."""

    uid: int
    inode: int


class Diagnosis:
    """One netlink socket, for one thread."""

    def __init__(self) -> None:
        self._netlink: socket.socket | None = None

    def owner(self, local: Endpoint, remote: Endpoint) -> Owner | None:
        """Whose socket it is that is connected from `local` to `remote`; None where there is none such here, or where
        the kernel does not say."""
        try:
            return self._ask(local, remote)
        except (OSError, ValueError, OverflowError, struct.error):
            self.close()
            return None

    def close(self) -> None:
        if self._netlink is not None:
            self._netlink.close()
            self._netlink = None

    def _ask(self, local: Endpoint, remote: Endpoint) -> Owner | None:
        source, target = (ip_address(canonical_address(end.address)) for end in (local, remote))
        if source.version != target.version:
            return None
        family = socket.AF_INET if source.version == 4 else socket.AF_INET6
        ports = (end.port.to_bytes(2, "big") for end in (local, remote))
        addresses = (address.packed.ljust(16, b"\0") for address in (source, target))
        asked = _ASKED.pack(family, socket.IPPROTO_TCP, 0, _ANY_STATE, *ports, *addresses, 0, _NO_COOKIE, _NO_COOKIE)
        header = _HEADER.pack(_HEADER.size + len(asked), _SOCK_DIAG_BY_FAMILY, _REQUEST, 0, 0)
        if self._netlink is None:
            self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)
            self._netlink.setblocking(False)  # the kernel answers before send returns
        self._netlink.send(header + asked)
        answer = self._netlink.recv(4096)
        with suppress(BlockingIOError):  # an acknowledgement that nobody has asked for would be the next answer
            while True:
                self._netlink.recv(4096)
        if _HEADER.unpack_from(answer)[1] != _SOCK_DIAG_BY_FAMILY:
            return None  # an error: no such socket
        said = _SAID.unpack_from(answer, _HEADER.size)
        # Where nothing is connected so, the kernel shows who listens there.
        return None if said[1] == _LISTEN else Owner(said[14], said[15])
