"""How often somebody may do something. Pure: the time is an argument."""

from __future__ import annotations

from collections import OrderedDict

__all__ = ["RateLimit"]


class RateLimit:
    """A bucket for each name: it holds `burst` and fills with so many a second; each time takes one.

    Args:
        per_second: 0 for no limit.
        burst: at least 1.
        most: names that are remembered. Of more, those that asked longest ago are forgotten, and begin with a full
            bucket again.
    """

    def __init__(self, per_second: float, burst: float, most: int = 1024) -> None:
        self._per_second = per_second
        self._burst = burst
        self._most = most
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # what it held, and when in seconds

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, name: str, now: float) -> float:
        """0.0 where this may be done now; else nothing is taken, and this is how many seconds later it may.

        Args:
            now: seconds of any clock; where it goes back, nothing fills until it has caught up.
        """
        if not self._per_second:
            return 0.0
        held, then = self._buckets.pop(name, (self._burst, now))
        now = max(now, then)
        held = min(self._burst, held + (now - then) * self._per_second)
        wait = 0.0 if held >= 1 else (1 - held) / self._per_second
        self._buckets[name] = (held if wait else held - 1, now)
        if len(self._buckets) > self._most:
            self._buckets.popitem(last=False)
        return wait
