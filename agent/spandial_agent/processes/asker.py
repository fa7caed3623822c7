"""Which process it is that has opened a TCP connection to the agent."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing

from spandial_agent.processes.diagnosis import Diagnosis
from spandial_agent.processes.holder import holder
from spandial_agent.processes.sockets import Endpoint, canonical_address, whose_connection

__all__ = ["asker"]


def asker(
    pids: Iterable[int], address: str, port: int, to_port: int, to_address: str = "", here: bool = False
) -> int | None:
    """The one of these processes that has a connection open from there to a port; None if it is none of them, or if it
    may not be seen. An address is the process's own: behind a translation of addresses nobody is found.

    Reads sockets, of all that there are where the kernel does not know the connection: called from a thread without an
    event loop. Raises TimeoutError where they have so much open that it takes too long.

    Args:
        here: the kernel has known the connection: where it does no more, it has been closed, and nothing is read.
    """
    try:
        peer = Endpoint(canonical_address(address), port)
    except ValueError:
        return None
    if to_address:
        with closing(Diagnosis()) as diagnosis:
            owner = diagnosis.owner(peer, Endpoint(to_address, to_port))
        if owner is not None and owner.inode:
            return holder(pids, owner.inode)
    return None if here else whose_connection(pids, peer, to_port)
