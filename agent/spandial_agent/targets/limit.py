"""What holds a target's rates below those of its rules. Pure."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limit"]


@dataclass(frozen=True)
class Limit:
    """What a target's rates are multiplied by, and which of them none is above then.

    Attributes:
        factor: 0-1.
        most: percentage.

    Raises ValueError.
    """

    factor: float = 1.0
    most: float = 100.0

    def __post_init__(self) -> None:
        if not 0 <= self.factor <= 1:
            raise ValueError(f"a factor is between 0 and 1, not {self.factor!r}")
        if not 0 <= self.most <= 100:
            raise ValueError(f"a rate is a percentage from 0 to 100, not {self.most!r}")

    def rate(self, percent: float, floor: float = 0.0) -> float:
        """The rate in force in place of this one, which is never multiplied to below its floor."""
        return min(max(percent * self.factor, min(floor, percent)), self.most)

    @property
    def why(self) -> str:
        """Whose limit it is."""
        return " and ".join(["budget"] * (self.factor < 1) + ["tenant quota"] * (self.most < 100))
