"""The kernel's clock as Unix time."""

from __future__ import annotations

import time
from collections import deque
from typing import NamedTuple

__all__ = ["Clock", "Reading", "read_clocks"]

_STEPS_MAX = 16  # steps of the wall clock that are remembered; requests in flight are rarely older than one
_ROUNDING_NS = 1_000  # less is no step: each clock is rounded to ns on its own


class Reading(NamedTuple):
    """The wall clock, read between two readings of CLOCK_BOOTTIME. All in ns."""

    before_ns: int
    wall_ns: int
    after_ns: int


def read_clocks(attempts: int = 8) -> Reading:
    """The tightest of several readings: the thread may lose its core between the three calls."""
    return min((_read() for _ in range(attempts)), key=lambda reading: reading.after_ns - reading.before_ns)


def _read() -> Reading:
    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return Reading(before, time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME))


class _Offset(NamedTuple):
    """Unix time less CLOCK_BOOTTIME, from `since_ns` on: somewhere from `low` to `high`."""

    since_ns: int
    low: int
    high: int


class Clock:
    """CLOCK_BOOTTIME to Unix time; give it a reading every second or so.

    Both clocks are slewed alike (clock_gettime(2)), so their difference stands still until the wall clock is set.
    Readings that agree narrow it down; one that contradicts them is a step, and holds from then on.
    """

    def __init__(self, reading: Reading) -> None:
        self._offsets = deque([_offset_of(reading)._replace(since_ns=0)], maxlen=_STEPS_MAX)

    def update(self, reading: Reading) -> None:
        new, current = _offset_of(reading), self._offsets[-1]
        low, high = max(new.low, current.low), min(new.high, current.high)
        if low - high > _ROUNDING_NS:
            self._offsets.append(new)
        else:
            self._offsets[-1] = current._replace(low=min(low, high), high=max(low, high))

    def unix_ns(self, start_ns: int, end_ns: int) -> tuple[int, int]:
        """Both ends of an exchange: the start as the wall clock showed it then, the duration as CLOCK_BOOTTIME has it.

        A step in between does not bend the duration, and parent and child are shifted alike. The end is never first.
        """
        offset = next((each for each in reversed(self._offsets) if each.since_ns <= start_ns), self._offsets[0])
        start = start_ns + (offset.low + offset.high) // 2
        return start, start + max(0, end_ns - start_ns)


def _offset_of(reading: Reading) -> _Offset:
    return _Offset(reading.after_ns, reading.wall_ns - reading.after_ns, reading.wall_ns - reading.before_ns)
