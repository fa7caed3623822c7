"""The sheet, as the agent writes it: a block for each set of operations that have rates of their own."""

from __future__ import annotations

import os
from bisect import insort

from spandial import abi
from spandial_agent.table.sealed import seal_memory

__all__ = ["Sheet"]

_ALIGNED = 8


class Sheet:
    """Blocks of bytes in sealed memory; `spandial.sheet` says what is in them and how they are read.

    Attributes:
        descriptor: may be mapped for reading by anybody who is handed it, and for writing by nobody.
    """

    def __init__(self) -> None:
        self.descriptor, self._map = seal_memory("spandial-sheet", abi.SHEET_SIZE)
        self._written = bytearray(abi.SHEET_SIZE)
        self._blocks: list[tuple[int, int]] = []  # where each begins and ends, in order

    def put(self, block: bytes) -> int | None:
        """Where a block is from now on; None where there is no room for it."""
        size = -(-len(block) // _ALIGNED) * _ALIGNED
        begin = 0
        for used, end in self._blocks:
            if used - begin >= size:
                break
            begin = end
        if begin + size > abi.SHEET_SIZE:
            return None
        self._map[begin : begin + len(block)] = self._written[begin : begin + len(block)] = block
        insort(self._blocks, (begin, begin + size))
        return begin

    def free(self, offset: int) -> None:
        """Take a block's room back. No row may name it any more."""
        self._blocks = [block for block in self._blocks if block[0] != offset]

    def repair(self) -> bool:
        """Write the blocks anew if they are not as they were written; whether they were not."""
        end = self._blocks[-1][1] if self._blocks else 0
        if self._map[:end] == self._written[:end]:
            return False
        self._map[:end] = self._written[:end]
        return True

    def close(self) -> None:
        """Readers keep what they have mapped."""
        self._map.close()
        os.close(self.descriptor)
