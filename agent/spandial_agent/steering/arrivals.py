"""How often something comes, from counts: calm while only chance moves them, at once when the load changes. Pure."""

from __future__ import annotations

import math
from collections import deque

__all__ = ["Arrivals", "deviation"]

_DEVIATION = 4.5  # standard deviations that chance does not explain
_SHARE = 0.05  # a change that is smaller than this one is no step, however sure
_ENOUGH = 2500  # counts: a standard deviation of 2 %
_LONGEST_S, _SHORTEST_S = 60.0, 1.0
_TOGETHER = (1, 2, 4, 8)  # the last windows: together they show what one alone does not
_WAVE = 3.0  # times the smaller of two steps: what comes and goes is no step
_CALM_S = 5.0  # in which half of a wave is forgotten

_Counted = tuple[float, float]  # count, seconds
_NOTHING: _Counted = (0.0, 0.0)


def deviation(count: float, expected: float) -> float:
    """By how many standard deviations a Poisson count is not what was expected. Anscombe's transform: the deviation is
    1, whatever the count."""
    return 2 * abs(math.sqrt(count + 0.375) - math.sqrt(expected + 0.375))


class Arrivals:
    """The rate of arrivals, from the counts of windows that follow each other.

    It is the mean of the last windows, of as many as make it precise: up to a minute of rare arrivals, some seconds of
    many. A window that chance does not explain, or a few together, end that memory: the new load counts alone; after a
    single one from the next on, for a change comes somewhere within a window. A load that falls again as it rose comes
    in waves: as long as they last, it takes more than such a wave to end the memory, and the mean counts.

    Attributes:
        rate: arrivals a second; 0 before there is a window.
    """

    def __init__(self) -> None:
        self._old = _NOTHING  # windows that are not recent: the older, the less they count
        self._recent: deque[_Counted] = deque()
        self._before: tuple[_Counted, deque[_Counted]] | None = None  # the memory that the last window ended
        self._step = 0.0  # by which the memory was last ended, below 0 downwards, less what has been forgotten of it
        self._wave = 0.0
        self.rate = 0.0

    def add(self, count: float, seconds: float) -> None:
        """One more window.

        Args:
            seconds: its length, above 0.
        """
        calm = 0.5 ** (seconds / _CALM_S)
        self._step *= calm
        window = count, seconds
        if self._before is not None:
            before, self._before = self._before, None
            if _deviation(window, _sum(before)) < _deviation(window, self._recent[-1]):
                self._old, self._recent = before
                self._step = -self._step  # it came and went
            else:
                self._recent.clear()
        self._recent.append(window)
        total = seen, length = _sum((self._old, self._recent))
        bound, calm_now = max(_DEVIATION, self._wave), True
        last_seen, last_length, number = 0.0, 0.0, 0
        for its_count, its_seconds in reversed(self._recent):
            last_seen, last_length, number = last_seen + its_count, last_length + its_seconds, number + 1
            if number not in _TOGETHER or length - last_length < its_seconds / 2:
                continue
            last, rest = (last_seen, last_length), (seen - last_seen, length - last_length)
            found = _deviation(last, rest)
            if found > bound:
                self._end_memory(number, found if last_seen * rest[1] > rest[0] * last_length else -found)
                total = _sum((self._old, self._recent))
                break
            calm_now = calm_now and found <= _DEVIATION
        else:
            if calm_now:
                self._wave *= calm
        self.rate = total[0] / total[1]
        self._age(seconds)

    def _end_memory(self, kept: int, step: float) -> None:
        """Only the last windows count from now on."""
        if step * self._step < 0:
            self._wave = max(self._wave, _WAVE * min(abs(step), abs(self._step)))
        self._step = step
        if kept == 1:
            window = self._recent.pop()
            self._before, self._recent = (self._old, self._recent), deque([window])
        else:
            self._recent = deque(list(self._recent)[-kept:])
        self._old = _NOTHING

    def _age(self, seconds: float) -> None:
        enough_s = _ENOUGH / self.rate if self.rate else _LONGEST_S
        left = math.exp(-seconds / min(max(enough_s, _SHORTEST_S), _LONGEST_S))
        self._old = self._old[0] * left, self._old[1] * left
        if len(self._recent) > _TOGETHER[-1]:
            count, its_seconds = self._recent.popleft()
            self._old = self._old[0] + count, self._old[1] + its_seconds


def _sum(memory: tuple[_Counted, deque[_Counted]]) -> _Counted:
    (seen, seconds), recent = memory
    return seen + sum(count for count, _ in recent), seconds + sum(its_seconds for _, its_seconds in recent)


def _deviation(new: _Counted, memory: _Counted) -> float:
    """By how many standard deviations a count is not what the memory expects."""
    expected = memory[0] / memory[1] * new[1]
    if abs(new[0] - expected) <= _SHARE * expected:
        return 0.0
    return deviation(new[0], expected) / math.sqrt(1 + new[1] / memory[1])
