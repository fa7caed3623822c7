"""Clocks of a host whose wall clock somebody sets, as an agent in a time namespace of its own would find them."""

from __future__ import annotations

import time

from spandial_agent.clock import KernelClock

__all__ = ["SetClock"]


class SetClock(KernelClock):
    """Attributes:
    ahead_ns: by how much the host's CLOCK_BOOTTIME is ahead of this process's.
    step_ns: by how much the wall clock was set.
    """

    def __init__(self, ahead_ns: int = 100_000 * 10**9) -> None:
        self.ahead_ns = ahead_ns
        self.step_ns = 0
        super().__init__(
            lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME) + self.ahead_ns, lambda: time.time_ns() + self.step_ns
        )

    def set(self, step_ns: int) -> None:
        """Set the wall clock, a while after anybody has looked at it."""
        self.step_ns += step_ns
        self._clock._read_ns -= 10**9
        self._looked_ns -= 10**9
