"""What one user's processes may take of what all share: places for libraries, and the time of the thread that looks."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

__all__ = ["Places", "TimeShares"]

_ROOT = 0
_RESERVE = 8  # one of so many places is root's


class Places:
    """A number of places. An eighth is root's alone. Of the others a user may take another one while he has fewer than
    are free: one alone gets half of them, and whoever comes next finds some.

    Args:
        total: how many there are.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._taken: Counter[int] = Counter()

    def take(self, user: int) -> bool:
        free = self.total - self._taken.total()
        if free <= 0 or (user != _ROOT and self._taken[user] >= free - self.total // _RESERVE):
            return False
        self._taken[user] += 1
        return True

    def taken(self, user: int) -> int:
        return self._taken[user]

    def give_back(self, user: int) -> None:
        self._taken[user] -= 1
        if not self._taken[user]:
            del self._taken[user]


class TimeShares:
    """Processor time of the calling thread, by user: so much at once, and a part of all that passes. Root has no limit.

    Args:
        at_once_s: seconds that a user has who used none for a while.
        part: of the time that passes.
        clock: seconds that pass.
    """

    def __init__(self, at_once_s: float, part: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._at_once_s, self._part, self._clock = at_once_s, part, clock
        self._debts: dict[int, tuple[float, float]] = {}  # seconds used and not yet made good, and when that was

    def used(self, user: int, seconds: float) -> None:
        debt = self._debt(user) + seconds
        if user != _ROOT:
            self._debts[user] = debt, self._clock()
        for other in [other for other in self._debts if not self._debt(other)]:
            del self._debts[other]

    def wait_s(self, user: int) -> float:
        """How long until this user has time again; zero if he has."""
        return max(0.0, (self._debt(user) - self._at_once_s) / self._part)

    def _debt(self, user: int) -> float:
        debt, when = self._debts.get(user, (0.0, 0.0))
        return max(0.0, debt - (self._clock() - when) * self._part)
