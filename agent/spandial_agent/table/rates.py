"""The rate table: one page-aligned block of rows that the agent writes and everybody else only reads.

Two backends behind one interface: a frozen BPF map for the kernel and a sealed memfd for the hooks, two copies that are
written together; the memfd alone where BPF is not to be had. A row belongs to one process for as long as that process
lives, so a reader that is slow to notice anything still reads its own row; only the end of the process frees it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from spandial import abi
from spandial.clock import boottime_ns, namespace_offset_ns
from spandial_agent.processes.shares import Shares
from spandial_agent.table.sheet import Sheet

__all__ = ["RateTable", "Row", "TableBackend"]


class TableBackend(Protocol):
    """Where the words are."""

    name: str
    descriptor: int
    """The hooks' copy: may be mapped for reading by anybody who is handed it, and for writing by nobody."""

    def write(self, row: int, words: Sequence[int], mask: int) -> None:
        """Write the words of a row whose bit is set in mask, each in one 64-bit store, the highest first."""

    def write_many(self, rows: Sequence[int], words: Sequence[int], mask: int) -> None:
        """Write the same words to several rows, as `write` does."""

    def read(self, row: int) -> tuple[int, ...]:
        """The eight words of a row."""

    def repair(self) -> list[int]:
        """Write the rows anew that in any copy are not as they were written, for whatever reason; which ones."""

    def close(self) -> None: ...


class Row(NamedTuple):
    """A process's row. The epoch tells it from earlier tenants of the same row."""

    number: int
    epoch: int


_KINDS = (1 << len(abi.EntryKind)) - 1
_RATES = 1 << abi.WORD_FALLBACK | _KINDS
_ROW = _RATES | 1 << abi.WORD_OPERATIONS
_ALL = 0b11111111
_RESERVE, _OF_ROOT = 512, 64  # rows that no one user has all of, and those of them that are root's
_OPERATION_ROWS = 1024  # that operations may have in any case; more while as many are left for processes


class RateTable:
    """Rows handed out and taken back, rates and lease written.

    Attributes:
        sheet: where the rows' operations are.
        refused: how many processes had to share the node's default row, since there was none left.
        altered: how many rows, or times the sheet, somebody else had changed, and were written anew.
    """

    def __init__(self, backend: TableBackend) -> None:
        self._offset_ns = namespace_offset_ns()
        self.backend = backend
        self.sheet = Sheet()
        self.refused = 0
        self.altered = 0
        self._free = deque(range(abi.DEFAULT_ROW + 1, abi.ROWS))
        self._of_operations = 0
        self._shares = Shares(_RESERVE, _OF_ROOT)
        self._uids: dict[int, int] = {}  # of rows of processes
        self._epoch = 0
        self._generation = 0
        backend.write(abi.HEADER_ROW, [abi.MAGIC | abi.ABI, 0, 0, abi.ROWS, 0, 0, 0, 0], _ALL)

    @property
    def free_rows(self) -> int:
        return len(self._free)

    def has_row_for(self, uid: int) -> bool:
        """Whether a user's process may have a row of its own."""
        return self._shares.may_take(uid, len(self._free))

    def allocate(self, tgid: int, rates: Sequence[int], fallback: int, operations: int = 0, *, uid: int = 0) -> Row:
        """A row of its own for a process, or the node's default row if none is left for its user, which is counted.

        Args:
            tgid: the process's id in the host's pid namespace.
            rates: the four rate words by entry kind.
            fallback: the word to obey once the lease has run out.
            operations: which set's operations have rates of their own, as `WORD_OPERATIONS` has it.
            uid: the user whose share it is of.
        """
        if not self.has_row_for(uid):
            self.refused += 1
            return Row(abi.DEFAULT_ROW, 0)
        self._shares.take(uid)
        # The longest free row first: a row's tenants are as far apart in time as can be.
        index = self._free.popleft()
        self._uids[index] = uid
        self._epoch = self._epoch % 0xFFFFFFFF + 1
        owner = self._epoch << 32 | tgid
        self.backend.write(index, [*rates, 0, operations, fallback, owner], _ALL)
        return Row(index, self._epoch)

    def free(self, row: Row) -> None:
        """Take a row back. Its process must have ended."""
        if row.number != abi.DEFAULT_ROW:
            self.backend.write(row.number, [0] * abi.ROW_WORDS, _ALL)
            self._free.append(row.number)
            if (uid := self._uids.pop(row.number, None)) is not None:
                self._shares.give_back(uid)

    def write(self, row: Row, rates: Sequence[int], fallback: int, operations: int | None = None) -> None:
        """Set a row's rates; every reader has them when this returns. What names its operations stays if not given."""
        mask = _RATES if operations is None else _ROW
        self.backend.write(row.number, [*rates, 0, operations or 0, fallback, 0], mask)

    def write_many(self, rows: Sequence[Row], rates: Sequence[int], fallback: int, operations: int = 0) -> None:
        """Set the same rates in several rows; every reader has them when this returns."""
        self.backend.write_many([row.number for row in rows], [*rates, 0, operations, fallback, 0], _ROW)

    def has_operation_rows(self, count: int) -> bool:
        """Whether so many rows more may be for operations."""
        taken, left = self._of_operations + count, len(self._free) - count
        return left >= 0 and (taken <= _OPERATION_ROWS or left >= _OPERATION_ROWS)

    def allocate_operation_rows(self, rates: Sequence[Sequence[int]]) -> list[int]:
        """Rows for operations that have these rates by entry kind, 0 where they are for other kinds; none at all where
        there are too few left. They have no owner: no process is ever told that one is its own."""
        if not self.has_operation_rows(len(rates)):
            return []
        self._of_operations += len(rates)
        rows = [self._free.popleft() for _ in rates]
        for row, words in zip(rows, rates):
            self.backend.write(row, [*words, 0, 0, 0, 0], _ALL)
        return rows

    def write_operation_row(self, row: int, rates: Sequence[int]) -> None:
        """Set the rates of an operation; every reader has them when this returns."""
        self.backend.write(row, [*rates, 0, 0, 0, 0], _KINDS)

    def free_operation_rows(self, rows: Sequence[int]) -> None:
        """Take rows of operations back. No process's row may name their set any more."""
        for row in rows:
            self.backend.write(row, [0] * abi.ROW_WORDS, _ALL)
        self._free.extend(rows)
        self._of_operations -= len(rows)

    def want_examples(self, row: Row, wanted: bool) -> None:
        """Whether the kernel shall hand over the requests of a process with a row of its own, kept or not."""
        words = [int(wanted)] * abi.ROW_WORDS
        if row.number != abi.DEFAULT_ROW:
            self.backend.write(row.number, words, 1 << abi.WORD_EXAMPLES)

    def write_default(self, rates: Sequence[int], fallback: int, operations: int = 0) -> None:
        """Set the node's default row."""
        self.write(Row(abi.DEFAULT_ROW, 0), rates, fallback, operations)

    def advance(self) -> None:
        """Count one change of the rules in the header."""
        self._generation += 1
        self.backend.write(abi.HEADER_ROW, [0, self._generation, 0, 0, 0, 0, 0, 0], 1 << abi.HEADER_GENERATION)

    def renew_lease(self, seconds: float) -> bool:
        """Promise readers that the rates hold for so long from now; whether the last promise had ended."""
        now = boottime_ns(self._offset_ns)
        ended = self.backend.read(abi.HEADER_ROW)[abi.HEADER_LEASE] <= now
        deadline = now + int(seconds * 1e9)
        self.backend.write(abi.HEADER_ROW, [0, 0, deadline, 0, 0, 0, 0, 0], 1 << abi.HEADER_LEASE)
        return ended

    def end_lease(self) -> None:
        """From now on readers use the fallback words."""
        self.backend.write(abi.HEADER_ROW, [0] * abi.ROW_WORDS, 1 << abi.HEADER_LEASE)

    def check(self) -> list[str]:
        """Compare all copies with what was written, and write anew what is not so; what that was. This takes 0.2 ms."""
        altered = [f"row {row}" for row in self.backend.repair()]
        if self.sheet.repair():
            altered.append("the sheet")
        self.altered += len(altered)
        return altered

    def close(self) -> None:
        """Readers keep what they have mapped; the lease then runs out."""
        self.sheet.close()
        self.backend.close()
