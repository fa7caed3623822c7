"""Who may register: connections with their counter pages are shared by the users of the node."""

from __future__ import annotations

import resource

from spandial import abi
from spandial_agent.discovery.hello import BadHello
from spandial_agent.processes.proc import Process
from spandial_agent.processes.shares import Shares
from spandial_agent.targets.targets import Targets

__all__ = ["ConnectionRoom"]

_PER_PROCESS = 8


class ConnectionRoom:
    """Which users have how many registered connections."""

    def __init__(self, targets: Targets) -> None:
        self._targets = targets
        self._capacity = _capacity()
        self._shares = Shares(self._capacity // 8, self._capacity // 64)

    def check(self, process: Process) -> None:
        """Raises BadHello where there is no room for one more connection of this process."""
        known = self._targets.get(process.pid)
        if known is not None and len(known.pages) >= _PER_PROCESS:
            raise BadHello(f"process {process.pid} has registered {_PER_PROCESS} times already")
        if not self._shares.may_take(process.uid, self._capacity - self._shares.total):
            raise BadHello(
                f"user {process.uid} has {self._shares.held(process.uid)} connections of {self._capacity}, and what is "
                "left is for other users: end some of his processes"
            )
        if not self._targets.has_room_for(process):
            raise BadHello(f"user {process.uid} has more processes than his share: end some of them")

    def take(self, uid: int) -> None:
        self._shares.take(uid)

    def give_back(self, uid: int) -> None:
        self._shares.give_back(uid)


def _capacity() -> int:
    """How many connections there may be: each takes three descriptors."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return min(max((limit - 512) // 3, limit // 6), _PER_PROCESS * abi.ROWS)
