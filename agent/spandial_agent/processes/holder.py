"""Which of some processes has a socket open. Whoever has many descriptors makes nobody read them all."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

from spandial_agent.processes.proc import descriptors

__all__ = ["Portions", "holder"]

_OF_ALL, _OF_A_PROCESS = 16384, 4096  # descriptors that are read
_LOOK_S = 0.5  # however many they are: where another thread is busy, each may have to wait for it

_Item = TypeVar("_Item")


class Portions:
    """How much is read of processes that have as much as they like: the users have an equal share each.

    Args:
        total: of all.
        each: of one process at most.
        clock: seconds of a monotonic clock.
    """

    def __init__(self, pids: Iterable[int], total: int, each: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._end = clock, clock() + _LOOK_S
        self._users = {pid: _user(pid) for pid in pids}
        users = set(self._users.values())
        self._left = dict.fromkeys(users, total // max(1, len(users)))
        self._each = each

    def of(self, pid: int, items: Iterable[_Item]) -> Iterator[_Item]:
        """As many of a process's items as may be read. Raises TimeoutError when all together take too long."""
        user = self._users[pid]
        for item in islice(items, min(self._each, self._left[user])):
            if self._clock() > self._end:
                raise TimeoutError("it takes too long to read what these processes have open")
            self._left[user] -= 1
            yield item


def holder(pids: Iterable[int], inode: int) -> int | None:
    """The one of these processes that has the socket of this inode open; None if it is none of them, if it may not be
    seen, or if it is not among the descriptors that are read. Raises TimeoutError."""
    pids = list(pids)
    portions = Portions(pids, _OF_ALL, _OF_A_PROCESS)
    return next((pid for pid in pids if inode in portions.of(pid, descriptors(pid))), None)


def _user(pid: int) -> int | None:
    """The effective user of a process; None if there is none."""
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None
