"""The kernel's clock as Unix time: whatever the kernel timed is turned into that here."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from spandial.clock import boottime_ns, namespace_offset_ns

__all__ = ["Clock", "KernelClock", "Reading"]

_STEPS_MAX = 16  # steps of the wall clock that are remembered; requests in flight are rarely older than one
_ROUNDING_NS = 1_000  # less is no step: each clock is rounded to ns on its own
_LOOK_NS = 1_000_000_000
_ATTEMPTS = 8


class Reading(NamedTuple):
    """The wall clock, read between two readings of CLOCK_BOOTTIME. All in ns."""

    before_ns: int
    wall_ns: int
    after_ns: int


class _Offset(NamedTuple):
    """Unix time less CLOCK_BOOTTIME, from `since_ns` on: somewhere from `low` to `high`."""

    since_ns: int
    low: int
    high: int


class Clock:
    """CLOCK_BOOTTIME to Unix time; give it a reading every second or so. Pure.

    Both clocks are slewed alike (clock_gettime(2)), so their difference stands still until the wall clock is set.
    Readings that agree narrow it down; one that contradicts them is a step. When it was nobody knows: whatever is
    nearer to the reading before has the old time, and what is nearer to this one the new.
    """

    def __init__(self, reading: Reading) -> None:
        # Never changed, but replaced: another thread may read it.
        self._offsets: tuple[_Offset, ...] = (_offset_of(reading)._replace(since_ns=0),)
        self._read_ns = reading.after_ns

    def update(self, reading: Reading) -> None:
        new, current = _offset_of(reading), self._offsets[-1]
        low, high = max(new.low, current.low), min(new.high, current.high)
        if low - high > _ROUNDING_NS:
            step = new._replace(since_ns=(self._read_ns + reading.after_ns) // 2)
            self._offsets = (*self._offsets, step)[-_STEPS_MAX:]
        else:
            self._offsets = (*self._offsets[:-1], current._replace(low=min(low, high), high=max(low, high)))
        self._read_ns = reading.after_ns

    def unix_ns(self, start_ns: int, end_ns: int) -> tuple[int, int]:
        """Both ends of an exchange: the start as the wall clock showed it then, the duration as CLOCK_BOOTTIME has it.

        A step in between does not bend the duration, and parent and child are shifted alike. The end is never first.
        """
        offsets = self._offsets
        offset = next((each for each in reversed(offsets) if each.since_ns <= start_ns), offsets[0])
        start = start_ns + (offset.low + offset.high) // 2
        return start, start + max(0, end_ns - start_ns)


def _offset_of(reading: Reading) -> _Offset:
    return _Offset(reading.after_ns, reading.wall_ns - reading.after_ns, reading.wall_ns - reading.before_ns)


class KernelClock:
    """The clock of the kernel's records, which is the host's CLOCK_BOOTTIME (bpf_ktime_get_boot_ns), whatever time
    namespace this process is in. Any thread may use it.

    A wall clock that is set is followed: whoever asks for Unix time has both clocks read, once a second.

    Args:
        boot_ns: the host's CLOCK_BOOTTIME; None: this process's, less what its time namespace adds.
        wall_ns: Unix time.

    Attributes:
        now_ns: the kernel's clock, now.
    """

    def __init__(self, boot_ns: Callable[[], int] | None = None, wall_ns: Callable[[], int] = time.time_ns) -> None:
        offset_ns = namespace_offset_ns()
        self.now_ns = boot_ns or (lambda: boottime_ns(offset_ns))
        self._wall_ns = wall_ns
        self._lock = threading.Lock()
        reading = self.read()
        self._clock, self._looked_ns = Clock(reading), reading.after_ns

    def unix_ns(self, start_ns: int, end_ns: int) -> tuple[int, int]:
        """As `Clock.unix_ns`."""
        self.look()
        return self._clock.unix_ns(start_ns, end_ns)

    def unix_s(self, at_ns: int) -> float:
        return self.unix_ns(at_ns, at_ns)[0] / 1e9

    def look(self) -> None:
        """See whether the wall clock was set, if the last look was a second ago."""
        if self.now_ns() - self._looked_ns < _LOOK_NS:
            return
        with self._lock:
            reading = self.read()
            self._clock.update(reading)
            self._looked_ns = reading.after_ns

    def read(self) -> Reading:
        """Both clocks: the tightest of several readings, as the thread may lose its core between the three calls."""
        readings = [Reading(self.now_ns(), self._wall_ns(), self.now_ns()) for _ in range(_ATTEMPTS)]
        return min(readings, key=lambda reading: reading.after_ns - reading.before_ns)
