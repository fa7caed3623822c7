"""A budget shared out: max-min fair. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

__all__ = ["Asked", "shares"]


class Asked(NamedTuple):
    """What one asks for, each in kept entries a second.

    Attributes:
        wanted: with the rates of the rules.
        least: what no rate can lower: what callers keep.
    """

    wanted: float
    least: float = 0.0


def shares(budget: float, asked: Sequence[Asked]) -> list[float]:
    """Each one's share: what it asks for up to a level that is the same for all, by which the budget is used up.

    Water filling: nobody's share can grow without that of somebody who has less, or as little, shrinking. Where what
    cannot be lowered is more than the budget, everybody has just that.
    """
    if sum(one.wanted for one in asked) <= budget:
        return [one.wanted for one in asked]
    level = _level(budget, asked)
    return [max(min(level, one.wanted), one.least) for one in asked]


def _level(budget: float, asked: Sequence[Asked]) -> float:
    """The level at which the shares' sum is the budget: between two of the points where the sum bends."""
    bends = sorted([(one.least, 1) for one in asked] + [(one.wanted, -1) for one in asked])
    used, growing = sum(one.least for one in asked), 0
    for (level, change), (end, _) in pairwise([(0.0, 0), *bends]):
        growing += change
        needed = used + growing * (end - level)
        if needed > budget:
            return max(level + (budget - used) / growing, 0.0) if used < budget else level
        used = needed
    return bends[-1][0] if bends else 0.0
