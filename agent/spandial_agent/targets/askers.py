"""Which targets have the connections by which the agent is asked. What was found is remembered."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from spandial.labels import Labels
from spandial_agent.processes.asker import asker
from spandial_agent.targets.targets import Targets
from spandial_api.node import Connection

__all__ = ["Askers"]

_PROCESSES = 256  # of which one may be asking
_REMEMBERED = 4096  # connections
_WAITING = 64  # looks
_AGAIN_S = 1.0  # a connection is looked at no more often
_NOBODY_S = 5.0  # who is no target may become one


class _Found(NamedTuple):
    """What a look has shown: a process by its pid and start time, or nobody; among which services, and when."""

    process: tuple[int, int] | None
    services: tuple[str, ...]
    looked: float


class Askers:
    """Lives on the event loop's thread, and looks in one of its own: whatever is asked, nothing else waits for a look.

    Args:
        look: `asker` of processes/asker.py.
        now: seconds of a monotonic clock.

    Attributes:
        skipped: connections that were not looked at, as too many were waiting.
    """

    def __init__(
        self,
        targets: Targets,
        look: Callable[..., int | None] = asker,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.skipped = 0
        self._targets = targets
        self._look = look
        self._now = now
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="asker")
        self._found: OrderedDict[Connection, _Found] = OrderedDict()
        self._looks: dict[Connection, asyncio.Task[_Found]] = {}

    async def find(self, services: Sequence[str], connection: Connection) -> Labels | None:
        """The labels of the target of one of these services that has a connection; None where nobody is found."""
        asked = tuple(services)
        found = self._found.get(connection)
        if found is None or not self._holds(found, asked, connection):
            if connection not in self._looks and len(self._looks) >= _WAITING:
                self.skipped += 1
                return None
            found = await asyncio.shield(self._looking(asked, connection))
        if found.process is None:
            return None
        target = self._targets.get(found.process[0])
        here = target is not None and target.process.start_time == found.process[1]
        return target.labels if target is not None and here and target.labels.service in asked else None

    def _holds(self, found: _Found, services: tuple[str, ...], connection: Connection) -> bool:
        age = self._now() - found.looked
        if age < _AGAIN_S:
            return True
        # Without its number, another connection may have come from the same port.
        if not connection.serial or found.services != services:
            return False
        if found.process is None:
            return age < _NOBODY_S
        target = self._targets.get(found.process[0])
        return target is not None and target.process.start_time == found.process[1]

    def _looking(self, services: tuple[str, ...], connection: Connection) -> asyncio.Task[_Found]:
        look = self._looks.get(connection)
        if look is None:
            look = self._looks[connection] = asyncio.ensure_future(self._look_at(services, connection))
            look.add_done_callback(lambda _: self._looks.pop(connection))
        return look

    async def _look_at(self, services: tuple[str, ...], connection: Connection) -> _Found:
        pids = [pid for service in services for pid in self._targets.of_service(service)][:_PROCESSES]
        started = {pid: target.process.start_time for pid in pids if (target := self._targets.get(pid)) is not None}
        loop = asyncio.get_running_loop()
        at = (connection.address, connection.port, connection.to_port, connection.to_address)
        pid = await loop.run_in_executor(self._thread, self._look, pids, *at)
        found = _Found(None if pid is None else (pid, started.get(pid, 0)), services, self._now())
        self._found[connection] = found
        self._found.move_to_end(connection)
        if len(self._found) > _REMEMBERED:
            self._found.popitem(last=False)
        return found
