"""Unix time that nobody sets: the wall clock as it was at the start, and from then on the boot clock.

Both clocks are slewed alike (clock_gettime(2)), so their difference stands still until the wall clock is set. The boot
clock goes on while the host sleeps.
"""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["RunClock", "boot_s"]

_STEP_S = 1.0  # what the wall clock must be set by to be noticed
_CLOSE_S = 0.05  # two clocks that are read further apart are not compared


def boot_s() -> float:
    """Seconds since boot: nobody sets this clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class RunClock:
    """Args:
    wall: Unix time in seconds.
    boot: seconds since boot.
    """

    def __init__(self, wall: Callable[[], float] = time.time, boot: Callable[[], float] = boot_s) -> None:
        self._wall, self._boot = wall, boot
        self._offset = wall() - boot()

    def now(self) -> float:
        return self._boot() + self._offset

    def step(self) -> float:
        """By how many seconds the wall clock was set since this clock was; 0 where it was not."""
        before = self._boot()
        wall = self._wall()
        if self._boot() - before > _CLOSE_S:
            return 0.0
        step = wall - before - self._offset
        return step if abs(step) >= _STEP_S else 0.0

    def set(self, step: float) -> None:
        """Follow the wall clock."""
        self._offset += step
