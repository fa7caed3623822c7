"""The table in a memfd, where there is no BPF."""

from __future__ import annotations

import os
from collections.abc import Sequence

from spandial import abi
from spandial_agent.table.sealed import seal_memory

__all__ = ["MemfdTable"]


class MemfdTable:
    """The table in a memfd. Only mappings made before the seal can write: this object's own."""

    name = "memfd"

    def __init__(self) -> None:
        self.descriptor, self._map = seal_memory("spandial-rates", abi.TABLE_SIZE)
        self._words = memoryview(self._map).cast("Q")

    def write(self, row: int, words: Sequence[int], mask: int) -> None:
        base = row * abi.ROW_WORDS
        for index in reversed(range(abi.ROW_WORDS)):
            if mask >> index & 1:
                self._words[base + index] = words[index]

    def write_many(self, rows: Sequence[int], words: Sequence[int], mask: int) -> None:
        for row in rows:
            self.write(row, words, mask)

    def read(self, row: int) -> tuple[int, ...]:
        return tuple(self._words[row * abi.ROW_WORDS : (row + 1) * abi.ROW_WORDS])

    def close(self) -> None:
        self._words.release()
        self._map.close()
        os.close(self.descriptor)
