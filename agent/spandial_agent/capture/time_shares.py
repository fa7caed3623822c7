"""The time of a thread that looks at processes, shared by those for whom it looks."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["TimeShares"]

_ROOT = 0


class TimeShares:
    """A thread's time, by user, or by address where the user is not known: so much at once, and a part of all that
    passes. Root has no limit.

    Args:
        at_once_s: seconds that a user has who used none for a while.
        part: of the time that passes.
        clock: seconds that pass.
    """

    def __init__(self, at_once_s: float, part: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._at_once_s, self._part, self._clock = at_once_s, part, clock
        self._debts: dict[int | str, tuple[float, float]] = {}  # seconds used and not yet made good, and when that was

    def used(self, user: int | str, seconds: float) -> None:
        debt = self._debt(user) + seconds
        if user != _ROOT:
            self._debts[user] = debt, self._clock()
        for other in [other for other in self._debts if not self._debt(other)]:
            del self._debts[other]

    def wait_s(self, user: int | str) -> float:
        """How long until this user has time again; zero if he has."""
        return max(0.0, (self._debt(user) - self._at_once_s) / self._part)

    def _debt(self, user: int | str) -> float:
        debt, when = self._debts.get(user, (0.0, 0.0))
        return max(0.0, debt - (self._clock() - when) * self._part)
