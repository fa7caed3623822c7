"""The rate table as a frozen BPF map: the kernel reads it, processes map it, one BPF program writes it."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Sequence

from spandial import abi
from spandial_agent.errors import KernelUnavailable
from spandial_agent.kernel.cache import CompileCache
from spandial_agent.kernel.compiler import Build
from spandial_agent.kernel.libbpf import RawTracepointRun, freeze
from spandial_agent.kernel.loader import Module

__all__ = ["RATES", "FrozenTable"]

RATES = Build("rates.c")

# The arguments of write_rows: the words that several rows may share, and four rows' numbers in one argument.
_SHARED = 0b01101111
_ROWS_A_RUN = 20
_ROWS = struct.Struct(f"={_ROWS_A_RUN}H")
_FOUR_A_WORD = struct.Struct(f"={_ROWS_A_RUN // 4}Q")


class FrozenTable:
    """The table in a BPF array. Raises KernelUnavailable where it cannot be made.

    Args:
        cache: where compiled sources are kept.
    """

    name = "bpf"

    def __init__(self, cache: CompileCache | None = None) -> None:
        self._module = Module(RATES, cache=cache)
        try:
            self._run = RawTracepointRun(self._module.load("write_row"))
            self._run_many = RawTracepointRun(self._module.load("write_rows"))
            self.descriptor = self._module.map_fd("rates")
            freeze(self.descriptor)
            self._map = mmap.mmap(self.descriptor, abi.TABLE_SIZE, mmap.MAP_SHARED, mmap.PROT_READ)
        except OSError as error:
            raise KernelUnavailable([f"the rate table cannot live in a BPF map: {error}."]) from error
        self._words = memoryview(self._map).cast("Q")

    def write(self, row: int, words: Sequence[int], mask: int) -> None:
        if self._run(row, mask, *words) != 0:
            raise IndexError(f"row {row} is outside the table")

    def write_many(self, rows: Sequence[int], words: Sequence[int], mask: int) -> None:
        if len(rows) == 1 or mask & ~_SHARED:
            for row in rows:
                self.write(row, words, mask)
            return
        shared = [word for index, word in enumerate(words) if _SHARED >> index & 1]
        for start in range(0, len(rows), _ROWS_A_RUN):
            some = [*rows[start : start + _ROWS_A_RUN], *[0] * _ROWS_A_RUN][:_ROWS_A_RUN]
            if self._run_many(mask, *shared, *_FOUR_A_WORD.unpack(_ROWS.pack(*some))) != 0:
                raise IndexError(f"one of the rows {some} is outside the table")

    def read(self, row: int) -> tuple[int, ...]:
        return tuple(self._words[row * abi.ROW_WORDS : (row + 1) * abi.ROW_WORDS])

    def close(self) -> None:
        self._words.release()
        self._map.close()
        self._module.close()
