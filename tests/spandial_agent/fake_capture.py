"""The kernel side as the agent calls it: what is watched, and what was counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from spandial_agent.capture.counts import Counts
from spandial_agent.capture.operation_map import OperationRule
from spandial_agent.capture.tally import KindCounts, tally_of
from spandial_agent.errors import KernelUnavailable, OperationsFull
from spandial_agent.table.rates import Row

__all__ = ["FakeCapture", "counts_of"]


def counts_of(**counts: int) -> Counts:
    """Counts of HTTP entries, by their names; those that are not given are 0."""
    return Counts(*((0, counts.get(name, 0), 0, 0) for name in Counts._fields))


class FakeCapture:
    """Stands in for kernel.capture.Capture.

    Attributes:
        watched: the row of each watched process.
        calls: every change of what is watched, in order.
        counted: what the kernel has counted, by row.
        room: how many processes can be watched.
        operations: the rules of each set by operation.
        operation_room: how many sets of them there can be.
        on_remove: called while a process is taken off.
        hand_over: hands records to the agent, once it has started to read them.
        attached: the programs run.
        lacking: why they cannot be attached.
        refuses: the kernel takes none of what is to be written before.
    """

    path = "socket"

    def __init__(self) -> None:
        self.watched: dict[int, Row] = {}
        self.calls: list[tuple[str, int]] = []
        self.counted: dict[int, Counts] = {}
        self.room = 1 << 32
        self.operations: dict[int, list[OperationRule]] = {}
        self.operation_room = 1 << 32
        self.on_remove: Callable[[int], None] = lambda tgid: None
        self.hand_over: Callable[[list[bytes]], None] = lambda records: None
        self.attached = True
        self.lacking: list[str] = []
        self.refuses = False

    def attach(self) -> None:
        self.attached = True
        if self.lacking:
            raise KernelUnavailable(self.lacking)
        if self.refuses:
            raise OSError(7, "update of the key: Argument list too long")

    def detach(self) -> None:
        self.attached = False

    def start(self, on_records: Callable[[list[bytes]], None]) -> None:
        self.hand_over = on_records

    def add_target(self, tgid: int, row: Row, answers: bool = False) -> None:
        if len(self.watched) >= self.room:
            raise OSError(7, "update of the key: Argument list too long")
        self.calls.append(("add", tgid))
        self.watched[tgid] = row

    def move_target(self, tgid: int, row: Row) -> None:
        if tgid not in self.watched:
            raise KeyError(tgid)
        self.calls.append(("move", tgid))
        self.watched[tgid] = row

    def want_answers(self, tgid: int, row: Row, answers: bool) -> None:
        if tgid not in self.watched:
            raise KeyError(tgid)

    def remove_target(self, tgid: int) -> None:
        self.on_remove(tgid)
        self.calls.append(("remove", tgid))
        self.watched.pop(tgid, None)

    def set_operations(self, operation_set: int, rules: Sequence[OperationRule]) -> list[OperationRule]:
        if len(self.operations) >= self.operation_room:
            raise OperationsFull("no room")
        self.operations[operation_set] = list(rules)
        return []

    def drop_operations(self, operation_set: int) -> None:
        del self.operations[operation_set]

    def counts(self, row: int) -> Counts:
        return self.counted.get(row, counts_of())

    def tallies(self, rows: Sequence[int]) -> list[int]:
        return [tally_of(KindCounts(*self.counts(row)[:4])) for row in rows]

    def losses(self) -> dict[str, int]:
        return {"ring_full": 0}
