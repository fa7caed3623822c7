"""Which TCP ports processes listen on, and which connections they have open.

The kernel tells of sockets by network namespace, with the inode of each; /proc/<pid>/fd tells which a process has open.
There are two ways to ask:

- Socket diagnosis (sock_diag(7), through pyroute2) for the agent's own namespace: the kernel sends the sockets of the
  wanted states and no others. It answers for the namespace of the socket that asks, so it serves no other.
- /proc/<pid>/net/tcp and tcp6 (Documentation/networking/proc_net_tcp.rst) of a process in there for every other
  namespace; and for the own one where diagnosis answers nothing, be it that there are no such sockets or that the
  kernel has no tcp_diag: pyroute2 does not tell these apart.

pyroute2 runs an event loop of its own: what reads sockets here is called from threads that run none.
"""

from __future__ import annotations

import os
import socket
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from ipaddress import IPv6Address, ip_address
from itertools import chain, takewhile
from pathlib import Path
from typing import Literal, NamedTuple

from spandial_agent.processes.holder import Portions, holder
from spandial_agent.processes.proc import socket_inodes

__all__ = [
    "Connected",
    "Endpoint",
    "Listening",
    "TcpSocket",
    "began_to_listen",
    "canonical_address",
    "connected",
    "listening_ports",
    "open_connections",
    "parse_proc_net_tcp",
    "whose_connection",
]

_PROC = Path("/proc")
_OF_ALL, _OF_A_NAMESPACE = 65536, 16384  # sockets that are read to find whose one is

# include/net/tcp_states.h
_ESTABLISHED, _FIN_WAIT1, _FIN_WAIT2, _CLOSE_WAIT, _LISTEN = 1, 4, 5, 8, 10
_OPEN = frozenset({_ESTABLISHED, _FIN_WAIT1, _FIN_WAIT2, _CLOSE_WAIT})


class Endpoint(NamedTuple):
    """An IPv4 or IPv6 address as text, and a port. IPv4 on an IPv6 socket (RFC 4291, 2.5.5.2) is shown as IPv4."""

    address: str
    port: int


class TcpSocket(NamedTuple):
    """A TCP socket; the inode is 0 if no process has it open."""

    state: int
    local: Endpoint
    remote: Endpoint
    inode: int


class Connected(NamedTuple):
    """Open connections of a process with one server, or of one client's host with it.

    Attributes:
        incoming: they came to a port that the process listens on.
        address: the other side's.
        port: the server's.
        connections: how many.
    """

    incoming: bool
    address: str
    port: int
    connections: int


class Listening(NamedTuple):
    """What a look at a process has shown: its ports, and the inodes of all listeners that it was looked at for."""

    ports: frozenset[int]
    looked_for: frozenset[int]


def listening_ports(pid: int) -> frozenset[int]:
    """The TCP ports that a process listens on; none if it is gone or may not be seen."""
    inodes = socket_inodes(pid)
    return frozenset(listener.local.port for listener in _listeners([pid]) if listener.inode in inodes)


def open_connections(pid: int) -> list[TcpSocket]:
    """The TCP connections that a process has, established or closed by one side only. Empty if it may not be seen."""
    inodes = socket_inodes(pid)
    # While others come and go, what is read in pieces may show a socket twice.
    return list({found.inode: found for found in _open_around(pid) if found.inode in inodes}.values())


def whose_connection(pids: Iterable[int], local: Endpoint, to_port: int) -> int | None:
    """The one of these processes that has a connection open from its own `local` to a port; None if it is none of them,
    or if it may not be seen. Of namespaces with many sockets not all are read.
    Raises TimeoutError."""
    neighbours: dict[int, list[int]] = {}
    for pid in pids:
        namespace = _namespace(pid)
        # A loopback address is another one in every namespace.
        if namespace is not None and (not ip_address(local.address).is_loopback or namespace == _namespace("self")):
            neighbours.setdefault(namespace, []).append(pid)
    portions = Portions((found[0] for found in neighbours.values()), _OF_ALL, _OF_A_NAMESPACE)
    for found in neighbours.values():
        around = portions.of(found[0], _sockets_around(found[0]))
        ends = (each for each in around if (each.local, each.remote.port) == (local, to_port) and each.state in _OPEN)
        inode = next((each.inode for each in ends), 0)
        if inode and (owner := holder(found, inode)) is not None:
            return owner
    return None


def connected(connections: Iterable[TcpSocket], ports: Collection[int]) -> list[Connected]:
    """Whom the connections of a process that listens on these ports are with; most connections first."""
    groups: Counter[tuple[bool, str, int]] = Counter()
    for found in connections:
        incoming = found.local.port in ports
        groups[incoming, found.remote.address, (found.local if incoming else found.remote).port] += 1
    return [Connected(*group, count) for group, count in sorted(groups.items(), key=lambda item: (-item[1], item[0]))]


def began_to_listen(
    waiting: Mapping[int, Collection[int]], wanted: Callable[[int], bool]
) -> dict[int, Listening | None]:
    """Those of the waiting processes that a new listener may belong to, with the wanted ports that they listen on.

    Processes are looked at only if there is a listener on a wanted port, in their network namespace, that they have not
    been looked at for: most calls read the namespaces' listeners and nothing else.

    Args:
        waiting: pids, each with the inodes of the listeners that it has been looked at for already.
        wanted: whether a port matters.

    Returns:
        None for a process that is gone. Who is left out has not begun to listen.
    """
    found: dict[int, Listening | None] = {}
    neighbours: dict[int, list[int]] = {}
    for pid in waiting:
        namespace = _namespace(pid)
        if namespace is not None:
            neighbours.setdefault(namespace, []).append(pid)
        elif not (_PROC / str(pid)).exists():
            found[pid] = None
    for pids in neighbours.values():
        ports = {listener.inode: listener.local.port for listener in _listeners(pids) if wanted(listener.local.port)}
        for pid in pids:
            if ports.keys() <= set(waiting[pid]):
                continue
            own = socket_inodes(pid) & ports.keys()
            found[pid] = Listening(frozenset(ports[inode] for inode in own), frozenset(ports))
    return found


def parse_proc_net_tcp(
    lines: Iterable[bytes], byteorder: Literal["little", "big"] = sys.byteorder
) -> Iterator[TcpSocket]:
    """The sockets in lines of /proc/net/tcp or tcp6. Lines that are none, such as the heading, are left out.

    A line's second and third field are addresses, each as 32-bit words that the kernel prints in the host's byte order
    though they are in the network's, and ports; the fourth is the state, all hexadecimal; the tenth is the inode.
    """
    for line in lines:
        fields = line.split(None, 10)
        try:
            state, inode = int(fields[3], 16), int(fields[9])
            yield TcpSocket(state, _endpoint(fields[1], byteorder), _endpoint(fields[2], byteorder), inode)
        except (ValueError, IndexError):
            continue


def _endpoint(text: bytes, byteorder: Literal["little", "big"]) -> Endpoint:
    """Raises ValueError."""
    digits, _, port_digits = text.partition(b":")
    words, port = bytes.fromhex(digits.decode()), int(port_digits, 16)
    if len(words) not in (4, 16) or not 0 <= port <= 0xFFFF:
        raise ValueError(text)
    if byteorder == "little":
        words = b"".join(words[at : at + 4][::-1] for at in range(0, len(words), 4))
    return Endpoint(canonical_address(words), port)


def canonical_address(given: str | bytes) -> str:
    """As `Endpoint` has it. Raises ValueError."""
    address = ip_address(given)
    return str((isinstance(address, IPv6Address) and address.ipv4_mapped) or address)


def _namespace(pid: int | str) -> int | None:
    """The network namespace of a process; None if it is gone or may not be seen."""
    try:
        return os.stat(f"{_PROC}/{pid}/ns/net").st_ino
    except OSError:
        return None


def _in_own_namespace(pid: int) -> bool:
    namespace = _namespace(pid)
    return namespace is not None and namespace == _namespace("self")


def _listeners(pids: Iterable[int]) -> list[TcpSocket]:
    """All listeners of the one namespace that these processes are in."""
    for pid in pids:
        if _in_own_namespace(pid) and (diagnosed := _diagnosed({_LISTEN})):
            return diagnosed
        # Each file begins with the listeners (net/ipv4/tcp_ipv4.c, tcp_seq_start): connections need not be read.
        shown = [list(takewhile(lambda found: found.state == _LISTEN, _shown(pid, name))) for name in ("tcp", "tcp6")]
        if any(shown) or _namespace(pid) is not None:
            return [*chain(*shown)]
    return []


def _open_around(pid: int) -> Iterator[TcpSocket]:
    """The open connections in a process's namespace."""
    return (found for found in _sockets_around(pid) if found.state in _OPEN)


def _sockets_around(pid: int) -> Iterable[TcpSocket]:
    """The sockets in a process's namespace, those that are open among them."""
    return (_in_own_namespace(pid) and _diagnosed(_OPEN)) or _shown(pid)


def _shown(pid: int, *names: Literal["tcp", "tcp6"]) -> Iterator[TcpSocket]:
    """The sockets of a process's namespace as /proc shows them."""
    for name in names or ("tcp", "tcp6"):
        try:
            with open(_PROC / str(pid) / "net" / name, "rb") as lines:
                yield from parse_proc_net_tcp(lines)
        except OSError:  # the process is gone, or there is no IPv6
            continue


def _diagnosed(states: Collection[int]) -> list[TcpSocket]:
    """The sockets of the agent's namespace that are in these states; none where that cannot be asked for."""
    found = []
    try:
        from pyroute2 import DiagSocket

        with DiagSocket() as diagnosis:
            diagnosis.bind()
            for family in (socket.AF_INET, socket.AF_INET6):
                messages = diagnosis.get_sock_stats(family=family, states=sum(1 << state for state in states))
                found += [_from_message(message) for message in messages]
    except Exception:  # pyroute2 has exceptions of its own for what the kernel refuses; /proc shows the same
        return []
    return found


def _from_message(message: Mapping[str, str | int]) -> TcpSocket:
    """From struct inet_diag_msg (include/uapi/linux/inet_diag.h)."""
    local, remote = (
        Endpoint(canonical_address(str(message[f"idiag_{address}"])), int(message[f"idiag_{port}"]))
        for address, port in (("src", "sport"), ("dst", "dport"))
    )
    return TcpSocket(int(message["idiag_state"]), local, remote, int(message["idiag_inode"]))
