"""The rate table in two copies, written together: a frozen BPF map for the kernel, and sealed memory for the hooks.

No process can write a frozen map, but any BPF program can that is loaded over its descriptor: who is handed that can do
more than read. So it stays in the agent's process, and hooks map a memfd (`memfd.py`), which no program can write.
"""

from __future__ import annotations

import mmap
import struct
import threading
from collections.abc import Sequence

from spandial import abi
from spandial_agent.errors import KernelUnavailable
from spandial_agent.kernel.cache import CompileCache
from spandial_agent.kernel.compiler import Build
from spandial_agent.kernel.libbpf import RawTracepointRun, freeze
from spandial_agent.kernel.loader import Module
from spandial_agent.table.memfd import MemfdTable, altered_rows

__all__ = ["RATES", "FrozenTable"]

RATES = Build("rates.c")

# The arguments of write_rows: the words that several rows may share, and four rows' numbers in one argument.
_SHARED = 0b01101111
_ALL = 0b11111111
_ROWS_A_RUN = 20
_ROWS = struct.Struct(f"={_ROWS_A_RUN}H")
_FOUR_A_WORD = struct.Struct(f"={_ROWS_A_RUN // 4}Q")


class FrozenTable:
    """The table in a BPF array, and in a memfd. Raises KernelUnavailable where it cannot be made.

    The hooks' copy is written first, then the map, at most a run of rows apart. The kernel sees a request before its
    hook does, so in this order whoever the gap treats unlike is in flight at the turn: the kernel has seen him before
    the second write, and the hook decides him after the first. `targets/in_flight.py` counts just those, as it reads
    what the kernel has seen after both writes. In the other order a request could come and be decided within the gap,
    by the new rate and by the old one, and nobody would count it.

    Args:
        cache: where compiled sources are kept.

    Attributes:
        hooks: their copy; `descriptor` is its descriptor.
        map_descriptor: the BPF map's, for the agent's own programs. It must never leave this process.
    """

    name = "bpf"

    def __init__(self, cache: CompileCache | None = None) -> None:
        self._module = Module(RATES, cache=cache)
        try:
            self._run = RawTracepointRun(self._module.load("write_row"))
            self._run_many = RawTracepointRun(self._module.load("write_rows"))
            self.map_descriptor = self._module.map_fd("rates")
            freeze(self.map_descriptor)
            self._map = mmap.mmap(self.map_descriptor, abi.TABLE_SIZE, mmap.MAP_SHARED, mmap.PROT_READ)
            self.hooks = MemfdTable()
        except OSError as error:
            raise KernelUnavailable([f"the rate table cannot live in a BPF map: {error}."]) from error
        self.descriptor = self.hooks.descriptor
        self._words = memoryview(self._map).cast("Q")
        self._lock = threading.Lock()  # the arguments of a run are in one place

    def write(self, row: int, words: Sequence[int], mask: int) -> None:
        with self._lock:
            self.hooks.write(row, words, mask)
            self._write_map(row, words, mask)

    def write_many(self, rows: Sequence[int], words: Sequence[int], mask: int) -> None:
        if len(rows) == 1 or mask & ~_SHARED:
            for row in rows:
                self.write(row, words, mask)
            return
        shared = [word for index, word in enumerate(words) if _SHARED >> index & 1]
        with self._lock:
            for start in range(0, len(rows), _ROWS_A_RUN):
                run = rows[start : start + _ROWS_A_RUN]
                self.hooks.write_many(run, words, mask)
                some = [*run, *[0] * _ROWS_A_RUN][:_ROWS_A_RUN]
                if self._run_many(mask, *shared, *_FOUR_A_WORD.unpack(_ROWS.pack(*some))) != 0:
                    raise IndexError(f"one of the rows {some} is outside the table")

    def read(self, row: int) -> tuple[int, ...]:
        return tuple(self._words[row * abi.ROW_WORDS : (row + 1) * abi.ROW_WORDS])

    def repair(self) -> list[int]:
        with self._lock:
            altered = altered_rows(self._words, self.hooks.written)
            altered += self.hooks.repair()
            for row in altered:
                words = self.hooks.written[row * abi.ROW_WORDS : (row + 1) * abi.ROW_WORDS]
                self._write_map(row, words, _ALL)
        return sorted(set(altered))

    def _write_map(self, row: int, words: Sequence[int], mask: int) -> None:
        if self._run(row, mask, *words) != 0:
            raise IndexError(f"row {row} is outside the table")

    def close(self) -> None:
        self._words.release()
        self._map.close()
        self.hooks.close()
        self._module.close()
