"""The table in a memfd: what hooks map. Where there is no BPF it is the whole table."""

from __future__ import annotations

import os
import threading
from array import array
from collections.abc import Sequence

from spandial import abi
from spandial_agent.table.sealed import seal_memory

__all__ = ["MemfdTable", "altered_rows"]

# The words of a mask, the highest first.
_WORDS = [tuple(index for index in reversed(range(abi.ROW_WORDS)) if mask >> index & 1) for mask in range(256)]


class MemfdTable:
    """The table in a memfd. Only mappings made before the seal can write: this object's own.

    A word is written by one aligned 64-bit store, which is what an item of a memoryview of format Q is on a 64-bit
    machine: no reader sees half a rate. The words of a row go one by one, the highest first: whoever finds a rate that
    sends him to a set of operations (`WORD_OPERATIONS`) finds that set named already, and an owner is there before what
    belongs to him. So no slice is assigned, which memcpy may write in any order.

    Attributes:
        written: all words as they were written, in memory of the agent's own; the copies are compared with them.
    """

    name = "memfd"

    def __init__(self) -> None:
        self.descriptor, self._map = seal_memory("spandial-rates", abi.TABLE_SIZE)
        self._words = memoryview(self._map).cast("Q")
        self.written = array("Q", bytes(abi.TABLE_SIZE))
        self._lock = threading.Lock()

    def write(self, row: int, words: Sequence[int], mask: int) -> None:
        self.write_many((row,), words, mask)

    def write_many(self, rows: Sequence[int], words: Sequence[int], mask: int) -> None:
        with self._lock:
            shared, written = self._words, self.written
            some = [(index, words[index]) for index in _WORDS[mask]]
            for row in rows:
                base = row * abi.ROW_WORDS
                for index, word in some:
                    shared[base + index] = written[base + index] = word

    def read(self, row: int) -> tuple[int, ...]:
        return tuple(self._words[row * abi.ROW_WORDS : (row + 1) * abi.ROW_WORDS])

    def repair(self) -> list[int]:
        """Write the rows anew that are not as they were written; which ones."""
        with self._lock:
            altered = altered_rows(self._words, self.written)
            for row in altered:
                for at in reversed(range(row * abi.ROW_WORDS, (row + 1) * abi.ROW_WORDS)):
                    self._words[at] = self.written[at]
        return altered

    def close(self) -> None:
        self._words.release()
        self._map.close()
        os.close(self.descriptor)


def altered_rows(words: memoryview, written: array[int]) -> list[int]:
    """The rows of a copy that are not as they were written."""
    found, expected = words.tobytes(), written.tobytes()
    if found == expected:
        return []
    size = abi.ROW_SIZE
    return [row for row in range(abi.ROWS) if found[row * size : (row + 1) * size] != expected[row * size :][:size]]
