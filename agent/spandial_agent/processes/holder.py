"""Which of some processes has a socket open. Whoever has many descriptors makes nobody read them all."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import islice

from spandial_agent.processes.proc import descriptors

__all__ = ["holder"]

_OF_A_PROCESS = 4096  # descriptors that are read
_OF_ALL = 16384  # the users of the processes have an equal share each


def holder(pids: Iterable[int], inode: int) -> int | None:
    """The one of these processes that has the socket of this inode open; None if it is none of them, if it may not be
    seen, or if it is not among the descriptors that are read."""
    users = {pid: user for pid in pids if (user := _user(pid)) is not None}
    share = _OF_ALL // max(1, len(set(users.values())))
    left = dict.fromkeys(users.values(), share)
    for pid, user in users.items():
        for found in islice(descriptors(pid), min(_OF_A_PROCESS, left[user])):
            left[user] -= 1
            if found == inode:
                return pid
    return None


def _user(pid: int) -> int | None:
    """The effective user of a process; None if there is none."""
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None
