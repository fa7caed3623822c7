"""How often something comes, from counts: calm while only chance moves them, at once when the load changes. Pure."""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

__all__ = ["Arrivals", "deviation"]

_DEVIATION = 4.0  # standard deviations that chance does not explain
_SHARE = 0.05  # a change that is smaller than this one is no step, however sure
_ENOUGH = 2500  # counts: a standard deviation of 2 %
_LONGEST_S, _SHORTEST_S = 60.0, 4.0
_RECENT = (2, 4)  # windows that together show what one alone does not
_WAVE = 1.5  # times the smaller of two steps: what comes and goes is no step
_CALM_S = 5.0  # in which half of a wave is forgotten


def deviation(count: float, expected: float) -> float:
    """By how many standard deviations a Poisson count is not what was expected. Anscombe's transform: the deviation is
    1, whatever the count."""
    return 2 * abs(math.sqrt(count + 0.375) - math.sqrt(expected + 0.375))


class _Memory(NamedTuple):
    seen: float
    seconds: float

    def after(self, other: _Memory, share: float) -> _Memory:
        """This one, after what is left of another."""
        return _Memory(self.seen + share * other.seen, self.seconds + share * other.seconds)


class Arrivals:
    """The rate of arrivals, from the counts of windows that follow each other.

    It is the mean of the last windows, of as many as make it precise: up to a minute of rare arrivals, four seconds of
    many. A window that chance does not explain, or a few together, end that memory: the new load counts alone; after a
    single one from the next on, for a change comes somewhere within a window. A load that falls again as it rose comes
    in waves: as long as they last, it takes more than such a wave to end the memory, and the mean counts.

    Attributes:
        rate: arrivals a second; 0 before there is a window.
    """

    def __init__(self) -> None:
        self._all = _Memory(0.0, 0.0)
        self._recent: deque[_Memory] = deque(maxlen=_RECENT[-1])
        self._before: _Memory | None = None  # the memory that the last window ended
        self._step = 0.0  # by which the memory was last ended, less what has been forgotten of it
        self._wave = 0.0

    @property
    def rate(self) -> float:
        return self._all.seen / self._all.seconds if self._all.seconds else 0.0

    def add(self, count: float, seconds: float) -> None:
        """One more window.

        Args:
            seconds: its length, above 0.
        """
        window = _Memory(count, seconds)
        self._recent.append(window)
        if not self._all.seconds:
            self._all = window
            return
        found = _deviation(self._all, window)
        calm = 0.5 ** (seconds / _CALM_S)
        self._step *= calm
        if found <= _DEVIATION:
            self._wave *= calm
        if self._before is not None:
            before, self._before = self._before, None
            self._all = self._longer(before, window) if _deviation(before, window) < found else window
            return
        bound = max(_DEVIATION, self._wave)
        if found > bound:
            self._before = self._all
            self._end_memory(window, found)
            return
        for several in _RECENT:
            together = _Memory(*map(sum, zip(*list(self._recent)[-several:])))
            found = _deviation(self._all, together)
            if found > bound:
                self._end_memory(together, found)
                return
        self._all = self._longer(self._all, window)

    def _end_memory(self, new: _Memory, step: float) -> None:
        self._all = new
        self._recent.clear()
        self._wave = max(self._wave, _WAVE * min(step, self._step))
        self._step = step

    def _longer(self, memory: _Memory, window: _Memory) -> _Memory:
        enough_s = _ENOUGH * memory.seconds / memory.seen if memory.seen else _LONGEST_S
        length_s = min(max(enough_s, _SHORTEST_S), _LONGEST_S)
        return window.after(memory, math.exp(-window.seconds / length_s))


def _deviation(memory: _Memory, window: _Memory) -> float:
    """By how many standard deviations a window's count is not what the memory expects."""
    expected = memory.seen / memory.seconds * window.seconds
    if abs(window.seen - expected) <= _SHARE * expected:
        return 0.0
    return deviation(window.seen, expected) / math.sqrt(1 + window.seconds / memory.seconds)
