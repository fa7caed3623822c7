"""Which process it is that has opened a TCP connection to the agent."""

from __future__ import annotations

from collections.abc import Iterable

from spandial_agent.processes.sockets import Endpoint, canonical_address, whose_connection

__all__ = ["asker"]


def asker(pids: Iterable[int], address: str, port: int, to_port: int) -> int | None:
    """The one of these processes that has a connection open from there to a port; None if it is none of them, or if it
    may not be seen. An address is the process's own: behind a translation of addresses nobody is found.

    Reads sockets: called from a thread without an event loop.
    """
    try:
        peer = Endpoint(canonical_address(address), port)
    except ValueError:
        return None
    return whose_connection(pids, peer, to_port)
