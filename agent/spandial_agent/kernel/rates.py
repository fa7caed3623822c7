"""The rate table as a frozen BPF map: the kernel reads it, processes map it, one BPF program writes it."""

from __future__ import annotations

import mmap
from collections.abc import Sequence

from spandial import abi
from spandial_agent.errors import KernelUnavailable
from spandial_agent.kernel.cache import CompileCache
from spandial_agent.kernel.compiler import Build
from spandial_agent.kernel.libbpf import RawTracepointRun, freeze
from spandial_agent.kernel.loader import Module

__all__ = ["RATES", "FrozenTable"]

RATES = Build("rates.c")


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
            self.descriptor = self._module.map_fd("rates")
            freeze(self.descriptor)
            self._map = mmap.mmap(self.descriptor, abi.TABLE_SIZE, mmap.MAP_SHARED, mmap.PROT_READ)
        except OSError as error:
            raise KernelUnavailable([f"the rate table cannot live in a BPF map: {error}."]) from error
        self._words = memoryview(self._map).cast("Q")

    def write(self, row: int, words: Sequence[int], mask: int) -> None:
        if self._run(row, mask, *words) != 0:
            raise IndexError(f"row {row} is outside the table")

    def read(self, row: int) -> tuple[int, ...]:
        return tuple(self._words[row * abi.ROW_WORDS : (row + 1) * abi.ROW_WORDS])

    def close(self) -> None:
        self._words.release()
        self._map.close()
        self._module.close()
