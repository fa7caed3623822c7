"""What there is only so much of, shared by the users of the node."""

from __future__ import annotations

import os
from collections import Counter

__all__ = ["Shares"]


class Shares:
    """Who may take one more of something.

    While more than a reserve is free, everybody may: a node with one user can use nearly all there is. Of the reserve,
    a user may take only as long as he holds fewer than are left in it. So who comes late finds some, however many one
    user has taken before: half of what is left to one user, a quarter to the next. The last are root's, and the agent's
    own user's.

    Args:
        reserve: so many of them.
        privileged: so many of the reserve are for root.
    """

    def __init__(self, reserve: int, privileged: int) -> None:
        self._reserve = reserve
        self._privileged = privileged
        self._own = os.geteuid()
        self._held: Counter[int] = Counter()

    def may_take(self, uid: int, free: int) -> bool:
        """Whether a user may have one more.

        Args:
            free: how many nobody has.
        """
        if free <= 0:
            return False
        return uid in (0, self._own) or free > self._reserve or self._held[uid] < free - self._privileged

    @property
    def total(self) -> int:
        """How many all users hold."""
        return self._held.total()

    def held(self, uid: int) -> int:
        return self._held[uid]

    def take(self, uid: int) -> None:
        self._held[uid] += 1

    def give_back(self, uid: int) -> None:
        self._held[uid] -= 1
        if self._held[uid] <= 0:
            del self._held[uid]
