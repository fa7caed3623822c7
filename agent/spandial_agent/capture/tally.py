"""Sixteen counts side by side in one integer, 64 bits each. Pure.

A tally is seen, kept, seen with a remote parent and kept of those, each by kind of entry. Sums and differences of
tallies are those of all counts at once, for none of them ever reaches 2^64 or falls below what it was: thousands of
targets are added up each second.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from spandial.abi import EntryKind

__all__ = ["TALLY_SIZE", "KindCounts", "by_kind", "tally_of"]

_COUNTS = struct.Struct("<16Q")
TALLY_SIZE = _COUNTS.size
_KINDS = len(EntryKind)


class KindCounts(NamedTuple):
    """A tally's counts, by kind of entry."""

    seen: tuple[int, ...]
    kept: tuple[int, ...]
    seen_traced: tuple[int, ...]
    kept_traced: tuple[int, ...]


def by_kind(tally: int) -> KindCounts:
    counts = _COUNTS.unpack(tally.to_bytes(TALLY_SIZE, "little"))
    return KindCounts(*(counts[at : at + _KINDS] for at in range(0, len(counts), _KINDS)))


def tally_of(counts: KindCounts) -> int:
    return int.from_bytes(_COUNTS.pack(*(count for of_kinds in counts for count in of_kinds)), "little")
