"""Who has made a connection: his user where the kernel knows him, else his address."""

from __future__ import annotations

import ipaddress
import itertools

from spandial_agent.processes.diagnosis import Diagnosis
from spandial_agent.processes.sockets import Endpoint, canonical_address
from spandial_api.peers import Peer

__all__ = ["Peers"]

_IPV6_NETWORK = 64  # bits: whoever has one address has all of these

_serials = itertools.count(1)


class Peers:
    """Lives on the event loop's thread: to ask for one connection takes the kernel some microseconds."""

    def __init__(self) -> None:
        self._diagnosis = Diagnosis()

    def at(self, client: tuple[str, int] | None, server: tuple[str, int | None] | None) -> Peer:
        """Who is at the other end of a TCP connection."""
        if client is None or server is None or server[1] is None:
            return Peer("somewhere", next(_serials))
        address = ipaddress.ip_address(canonical_address(client[0].partition("%")[0]))
        if address.is_loopback or client[0] == server[0]:
            owner = self._diagnosis.owner(Endpoint(client[0], client[1]), Endpoint(server[0], server[1]))
            if owner is not None:
                return self.user(owner.uid)
        if address.version == 6:
            return Peer(str(ipaddress.ip_network((address, _IPV6_NETWORK), strict=False)), next(_serials))
        return Peer(str(address), next(_serials))

    def user(self, uid: int) -> Peer:
        """Who is known by the credentials of a Unix socket."""
        return Peer(f"uid {uid}", next(_serials), uid)
