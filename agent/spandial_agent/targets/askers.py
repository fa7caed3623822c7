"""Which targets have the connections by which the agent is asked. What was found is remembered."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice, zip_longest
from typing import NamedTuple

from spandial_agent.processes.asker import asker
from spandial_agent.targets.target import Target
from spandial_agent.targets.targets import Targets
from spandial_api.node import Asker, Connection

__all__ = ["Askers"]

_PROCESSES = 256  # of which one may be asking
_REMEMBERED = 4096  # connections
_WAITING = 64  # looks
_AGAIN_S = 1.0  # a connection is looked at no more often
_NOBODY_S = 5.0  # who is no target may become one


class _Asked(NamedTuple):
    """Among whose processes is looked: of these services, and of one user where he is known."""

    services: tuple[str, ...]
    uid: int | None

    def may_be(self, target: Target) -> bool:
        return target.labels.service in self.services and self.uid in (None, target.uid)


class _Found(NamedTuple):
    """What a look has shown: a process by its pid and start time, or nobody; among whose, and when."""

    process: tuple[int, int] | None
    asked: _Asked
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

    async def find(self, services: Sequence[str], connection: Connection, uid: int | None = None) -> Asker | None:
        """The target of one of these services that has a connection; None where nobody is found.

        Args:
            uid: only targets of this user are looked at, where he is known.
        """
        asked = _Asked(tuple(services), uid)
        found = self._found.get(connection)
        if found is None or not self._holds(found, asked, connection):
            if connection not in self._looks and len(self._looks) >= _WAITING:
                self.skipped += 1
                return None
            found = await asyncio.shield(self._looking(asked, connection))
        if found.process is None:
            return None
        target = self._targets.get(found.process[0])
        if target is None or target.process.start_time != found.process[1] or not asked.may_be(target):
            return None
        return Asker(target.labels, target.uid)

    def _holds(self, found: _Found, asked: _Asked, connection: Connection) -> bool:
        age = self._now() - found.looked
        if age < _AGAIN_S:
            return True
        # Without its number, another connection may have come from the same port.
        if not connection.serial or found.asked != asked:
            return False
        if found.process is None:
            return age < _NOBODY_S
        target = self._targets.get(found.process[0])
        return target is not None and target.process.start_time == found.process[1]

    def _looking(self, asked: _Asked, connection: Connection) -> asyncio.Task[_Found]:
        look = self._looks.get(connection)
        if look is None:
            look = self._looks[connection] = asyncio.ensure_future(self._look_at(asked, connection))
            look.add_done_callback(lambda _: self._looks.pop(connection))
        return look

    async def _look_at(self, asked: _Asked, connection: Connection) -> _Found:
        started = {target.pid: target.process.start_time for target in self._candidates(asked)}
        pids = list(started)
        loop = asyncio.get_running_loop()
        at = (connection.address, connection.port, connection.to_port, connection.to_address)
        pid = await loop.run_in_executor(self._thread, self._look, pids, *at)
        found = _Found(None if pid is None else (pid, started.get(pid, 0)), asked, self._now())
        self._found[connection] = found
        self._found.move_to_end(connection)
        if len(self._found) > _REMEMBERED:
            self._found.popitem(last=False)
        return found

    def _candidates(self, asked: _Asked) -> Iterable[Target]:
        """The processes to look at, of each user in turn: however many one has, the others' are among the first."""
        by_user: dict[int, list[Target]] = {}
        for pid in chain.from_iterable(self._targets.of_service(service, asked.uid) for service in asked.services):
            if (target := self._targets.get(pid)) is not None:
                by_user.setdefault(target.uid, []).append(target)
        in_turn = chain.from_iterable(zip_longest(*by_user.values()))
        return islice(filter(None, in_turn), _PROCESSES)
