"""Who shares the reservoirs of AWS X-Ray's rules. Pure: the time is an argument.

Clients name themselves, and nobody checks it. So a reservoir is shared evenly by peers first, users and addresses that
the kernel tells apart, and then by the clients of each: however many clients one makes up, they share what is his.
"""

from __future__ import annotations

from collections import Counter

from spandial_api.xray import XRayRule

__all__ = ["Reservoirs"]

_OTHERS = ""  # peers that are too many


class Reservoirs:
    """Every peer that had requests lately gets the same, and of it every one of its clients.

    Args:
        memory_s: how long a client counts that asks no more.
        bound: clients of one peer under one rule; of more, the ones longest known are forgotten.
        peers: of one rule; those that are more share what one has.
        in_all: clients of one peer under all rules; of more, nothing is remembered.

    Attributes:
        forgotten: how many clients were.
    """

    def __init__(self, memory_s: float, bound: int = 256, peers: int = 64, in_all: int = 4096) -> None:
        self.forgotten = 0
        self._memory_s = memory_s
        self._bound = bound
        self._peers = peers
        self._in_all = in_all
        # When each client was seen last, by rule, peer and name; and since when somebody may have been idle, by rule.
        self._seen: dict[str, dict[str, dict[str, float]]] = {}
        self._oldest: dict[str, float] = {}
        self._remembered: Counter[str] = Counter()  # by peer

    def quota(self, rule: XRayRule, client: str, requests: int, now: float, peer: str = "") -> int:
        """What one client may keep a second, of its requests under a rule.

        Args:
            requests: how many it had since it asked before.
            now: seconds of any clock.
            peer: whose client it is.
        """
        if not rule.reservoir:
            return 0
        self._forget_idle(rule.name, now)
        peers = self._seen.setdefault(rule.name, {})
        if peer not in peers and len(peers) >= self._peers:
            peer = _OTHERS
        if requests:
            self._see(rule.name, peers, peer, client, now)
        # Who is idle gets what he would get if he were not.
        return _part(_part(rule.reservoir, peer, peers), client, peers.get(peer, {}))

    @property
    def rules(self) -> set[str]:
        """The names of the rules that have clients."""
        return {name for name, peers in self._seen.items() if peers}

    def __len__(self) -> int:
        return self._remembered.total()

    def tidy(self, now: float) -> None:
        """Forget the rules whose clients ask no more."""
        for name in list(self._seen):
            self._forget_idle(name, now)
            if not self._seen[name]:
                del self._seen[name]
                self._oldest.pop(name, None)

    def _see(self, name: str, peers: dict[str, dict[str, float]], peer: str, client: str, now: float) -> None:
        clients = peers.setdefault(peer, {})
        if client not in clients:
            if len(clients) >= self._bound:
                self._forget(peers, peer, next(iter(clients)))
                self.forgotten += 1
                clients = peers.setdefault(peer, {})
            if self._remembered[peer] >= self._in_all:
                self.forgotten += 1
                if not clients:
                    del peers[peer]
                return
            self._remembered[peer] += 1
        clients[client] = now
        self._oldest[name] = min(self._oldest.get(name, now), now)

    def _forget_idle(self, name: str, now: float) -> None:
        """Looks at all clients only where one may have been idle for long enough."""
        before = now - self._memory_s
        if self._oldest.get(name, now) >= before:
            return
        peers = self._seen.get(name, {})
        idle = [(peer, each) for peer, clients in peers.items() for each, seen in clients.items() if seen < before]
        for peer, client in idle:
            self._forget(peers, peer, client)
        self._oldest[name] = min((seen for clients in peers.values() for seen in clients.values()), default=now)

    def _forget(self, peers: dict[str, dict[str, float]], peer: str, client: str) -> None:
        del peers[peer][client]
        if not peers[peer]:
            del peers[peer]
        self._remembered[peer] -= 1
        if not self._remembered[peer]:
            del self._remembered[peer]


def _part(whole: int, name: str, names: dict[str, object] | dict[str, float] | dict[str, dict[str, float]]) -> int:
    """What one of these gets of so much, also where it is not one of them yet. What is left over goes to the first."""
    among = len(names) + (name not in names)
    share, rest = divmod(whole, among)
    place = next((number for number, each in enumerate(names) if each == name), among - 1) if rest else among
    return share + (place < rest)
