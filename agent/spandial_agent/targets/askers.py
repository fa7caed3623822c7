"""Which targets have the connections by which the agent is asked. What was found is remembered."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice, zip_longest
from typing import NamedTuple

from spandial_agent.capture.time_shares import TimeShares
from spandial_agent.processes.asker import asker
from spandial_agent.targets.target import Target
from spandial_agent.targets.targets import Targets
from spandial_api.node import Asker, Connection
from spandial_api.turns import TurnLock

__all__ = ["Askers"]

_PROCESSES = 256  # of which one may be asking
_REMEMBERED = 4096  # connections
_LAST = 1024  # peers and what they asked for
_WAITING = 64  # looks
_AT_ONCE_S, _PART = 2.0, 0.1  # of the thread's time for one peer
_AGAIN_S = 1.0  # a connection is looked at no more often
_NOBODY_S = 5.0  # who is no target may become one


class _Asked(NamedTuple):
    """Among whose processes is looked: of these services, and of one user where he is known."""

    services: tuple[str, ...]
    uid: int | None

    def may_be(self, target: Target) -> bool:
        return target.labels.service in self.services and self.uid in (None, target.uid)


_ProcessId = tuple[int, int]  # pid and start time


class _Found(NamedTuple):
    """What a look has shown: a process, or nobody; among whose, and when."""

    process: _ProcessId | None
    asked: _Asked
    looked: float


class Askers:
    """Lives on the event loop's thread, and looks in one of its own: whatever is asked, nothing else waits for a look.

    One look is taken at a time, for each peer in turn. Of the places for those that wait, a peer has no more than it
    leaves to others; of the thread's time it has its share. Whose look is skipped keeps what it was told before.

    Args:
        look: `asker` of processes/asker.py.
        now: seconds of a monotonic clock.

    Attributes:
        skipped: connections that were not looked at, or not to the end: too many of their peers' were waiting, their
            share of time was used up, or a look took too long.
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
        self._took_s = 0.0  # the last look
        self._turns = TurnLock()
        self._times = TimeShares(_AT_ONCE_S, _PART, now)
        self._found: OrderedDict[Connection, _Found] = OrderedDict()
        # By peer and what it asked for: who was found last, and the last one whose labels were others.
        self._last: OrderedDict[tuple[str, _Asked], tuple[_ProcessId, ...]] = OrderedDict()
        self._looks: dict[Connection, asyncio.Task[_Found | None]] = {}
        self._waiting: Counter[str] = Counter()  # looks, by peer

    async def find(self, services: Sequence[str], connection: Connection, uid: int | None = None) -> Asker | None:
        """The target of one of these services that has a connection; None where nobody is found.

        Args:
            uid: only targets of this user are looked at, where he is known.
        """
        asked = _Asked(tuple(services), uid)
        found = self._found.get(connection)
        if found is not None and self._holds(found, asked, connection):
            return self._asker(found.process, asked)
        looked = await self._looking(asked, connection)
        return self._asker(looked.process, asked) if looked is not None else self._before(asked, connection)

    def _asker(self, process: _ProcessId | None, asked: _Asked) -> Asker | None:
        target = self._target(process)
        return Asker(target.labels, target.uid) if target is not None and asked.may_be(target) else None

    def _target(self, process: _ProcessId | None) -> Target | None:
        target = self._targets.get(process[0]) if process is not None else None
        return target if target is not None and (target.pid, target.process.start_time) == process else None

    def _holds(self, found: _Found, asked: _Asked, connection: Connection) -> bool:
        age = self._now() - found.looked
        if age < _AGAIN_S:
            return True
        # Without its number, another connection may have come from the same port.
        if not connection.serial or found.asked != asked:
            return False
        return age < _NOBODY_S if found.process is None else self._target(found.process) is not None

    def _before(self, asked: _Asked, connection: Connection) -> Asker | None:
        """Who an earlier look has shown to have this connection, or all by which this peer asked for the same."""
        found = self._found.get(connection) if connection.serial else None
        if found is not None and (before := self._asker(found.process, asked)) is not None:
            return before
        last = [self._asker(each, asked) for each in self._last.get((connection.sharer, asked), ())]
        known = [each for each in last if each is not None]
        return known[0] if len(known) == 1 else None

    async def _looking(self, asked: _Asked, connection: Connection) -> _Found | None:
        """A look at a connection, which is one for all who ask by it meanwhile. None where it is skipped."""
        look = self._looks.get(connection)
        if look is None:
            peer = connection.sharer
            if self._waiting[peer] >= _WAITING - self._waiting.total() or self._times.wait_s(_user(asked, peer)):
                self.skipped += 1
                return None
            self._waiting[peer] += 1
            look = self._looks[connection] = asyncio.ensure_future(self._look_at(asked, connection, peer))
            look.add_done_callback(lambda _: self._looked(connection, peer))
        return await asyncio.shield(look)

    def _looked(self, connection: Connection, peer: str) -> None:
        del self._looks[connection]
        self._waiting[peer] -= 1
        if not self._waiting[peer]:
            del self._waiting[peer]

    async def _look_at(self, asked: _Asked, connection: Connection, peer: str) -> _Found | None:
        async with self._turns.turn(peer):
            user = _user(asked, peer)
            if self._times.wait_s(user):  # the looks before this one have used it up
                self.skipped += 1
                return None
            started = {target.pid: target.process.start_time for target in self._candidates(asked)}
            loop = asyncio.get_running_loop()
            try:
                pid = await loop.run_in_executor(self._thread, self._pid, list(started), connection, asked)
            except TimeoutError:
                self.skipped += 1
                return None
            finally:
                self._times.used(user, self._took_s)
        found = _Found(None if pid is None else (pid, started.get(pid, 0)), asked, self._now())
        self._remember(found, connection, peer)
        return found

    def _pid(self, pids: list[int], connection: Connection, asked: _Asked) -> int | None:
        at = (connection.address, connection.port, connection.to_port, connection.to_address)
        # The kernel has told the user of a connection of its own alone.
        began = self._now()
        try:
            return self._look(pids, *at, here=asked.uid is not None)
        finally:
            self._took_s = self._now() - began  # also what it waited for the loop's thread

    def _remember(self, found: _Found, connection: Connection, peer: str) -> None:
        self._found[connection] = found
        self._found.move_to_end(connection)
        if len(self._found) > _REMEMBERED:
            self._found.popitem(last=False)
        target = self._target(found.process)
        if target is None or found.process is None:
            return
        last = self._last.pop((peer, found.asked), ())
        others = [each for each in last if (other := self._target(each)) is not None and other.labels != target.labels]
        self._last[peer, found.asked] = (found.process, *others[:1])
        if len(self._last) > _LAST:
            self._last.popitem(last=False)

    def _candidates(self, asked: _Asked) -> Iterable[Target]:
        """The processes to look at, of each user in turn: however many one has, the others' are among the first."""
        by_user: dict[int, list[Target]] = {}
        for pid in chain.from_iterable(self._targets.of_service(service, asked.uid) for service in asked.services):
            if (target := self._targets.get(pid)) is not None:
                by_user.setdefault(target.uid, []).append(target)
        in_turn = chain.from_iterable(zip_longest(*by_user.values()))
        return islice(filter(None, in_turn), _PROCESSES)


def _user(asked: _Asked, peer: str) -> int | str:
    """Whose time a look takes: of one who is not known, his address's."""
    return peer if asked.uid is None else asked.uid
