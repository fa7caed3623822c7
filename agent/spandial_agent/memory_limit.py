"""What the agent gives up while it holds more memory than it may: what is least needed first."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import structlog

__all__ = ["MemoryLimit", "Step", "resident_mib"]

_log = structlog.get_logger("spandial.memory")

_INTERVAL_S = 2.0
_TOLD_S = 300.0  # it is told for so long afterwards
_MIB = 1 << 20


class Step(NamedTuple):
    """One thing to give up.

    Attributes:
        what: it is, for a person: "event streams".
        shed: gives up what is there now; more may come later.
    """

    what: str
    shed: Callable[[], object]


def resident_mib() -> float:
    """Memory that this process holds, shared memory included: RSS, in MiB (proc_pid_statm(5))."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / _MIB


class MemoryLimit:
    """Looks at the memory that this process holds. While that is above the limit, each look takes the next step; behind
    the last one it begins again with the first.

    Args:
        limit_mib: of RSS.
        steps: the one that is needed least first.
    """

    def __init__(self, limit_mib: float, steps: Sequence[Step], clock: Callable[[], float] = time.monotonic) -> None:
        self._limit_mib = limit_mib
        self._steps = steps
        self._clock = clock
        self._taken = 0  # since it was last below the limit
        self._shed: list[str] = []
        self._shed_at = 0.0
        self._most_mib = 0.0

    @property
    def trouble(self) -> str:
        """What was given up in the last minutes, in one sentence; empty where nothing was."""
        if not self._shed or self._clock() - self._shed_at > _TOLD_S:
            return ""
        return (
            f"the agent held {self._most_mib:.0f} MiB of memory, more than SPANDIAL_MEMORY_LIMIT_MIB "
            f"({self._limit_mib:g}), and gave up {', '.join(self._shed)}."
        )

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(_INTERVAL_S)
            self.look(resident_mib())

    def look(self, resident: float) -> None:
        """Take the next step if so many MiB are more than the limit."""
        now = self._clock()
        if resident <= self._limit_mib:
            self._taken = 0
            return
        if now - self._shed_at > _TOLD_S:
            self._shed, self._most_mib = [], 0.0
        step = self._steps[self._taken % len(self._steps)]
        self._taken += 1
        self._shed_at, self._most_mib = now, max(self._most_mib, resident)
        if step.what not in self._shed:
            self._shed.append(step.what)
        _log.error(
            "above the memory limit", resident_mib=round(resident), limit_mib=self._limit_mib, gives_up=step.what
        )
        step.shed()
        _give_back()


def _give_back() -> None:
    """What is free in this process becomes free for others (malloc_trim(3), which the GNU library alone has)."""
    gc.collect()
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
