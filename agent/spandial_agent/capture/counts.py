"""What the kernel counted for a row."""

from __future__ import annotations

from typing import NamedTuple

from spandial import abi
from spandial.abi import EntryKind

__all__ = ["Counts"]


class Counts(NamedTuple):
    """What the kernel counted for a row; each tuple is indexed by `EntryKind`."""

    seen: tuple[int, ...]
    kept: tuple[int, ...]
    seen_traced: tuple[int, ...]
    kept_traced: tuple[int, ...]
    reverse: tuple[int, ...]
    reverse_kept: tuple[int, ...]
    reverse_traced: tuple[int, ...]

    @classmethod
    def summed(cls, per_cpu: list[bytes]) -> Counts:
        sums = [sum(column) for column in zip(*(abi.COUNTS.unpack(value) for value in per_cpu))]
        kinds = len(EntryKind)
        return cls(*(tuple(sums[at : at + kinds]) for at in range(0, len(sums), kinds)))
