"""Records of the ring buffer that are handed on together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Passed", "Piece"]


class Passed(NamedTuple):
    """How much went by."""

    records: int
    entries: int  # of them: kept entries and calls

    def plus(self, other: Passed) -> Passed:
        return Passed(self.records + other.records, self.entries + other.entries)


class Piece(tuple[bytes, ...]):
    """Records, and how much they are."""

    passed: Passed
    torn: set[int] | None  # connections of which records are missing before these; None: of all there may be

    def __new__(cls, records: Sequence[bytes], passed: Passed, torn: set[int] | None) -> Piece:
        piece = super().__new__(cls, records)
        piece.passed, piece.torn = passed, torn
        return piece
