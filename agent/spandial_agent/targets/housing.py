"""Who has a row of his own, and who shares the node's default row for want of one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from spandial.abi import DEFAULT_ROW
from spandial.labels import Labels
from spandial_agent.processes.proc import Process
from spandial_agent.processes.shares import Shares
from spandial_agent.table.rates import RateTable, Row
from spandial_agent.targets.group import Group
from spandial_agent.targets.groups import Groups
from spandial_agent.targets.rows import TargetRows
from spandial_agent.targets.target import REGISTERED, Target

__all__ = ["Housing"]

_SHARING = 4096  # processes that may share the node's default row
_HOUSED_AT_ONCE = 128


class Housing:
    """The rows of targets and their places in the default row, both shared by users; and the groups that go with them.

    Args:
        by_pid: the targets, whoever they are at the time.
    """

    def __init__(self, table: RateTable, groups: Groups, rows: TargetRows, by_pid: Mapping[int, Target]) -> None:
        self._table = table
        self._groups = groups
        self._rows = rows
        self._by_pid = by_pid
        self._shares = Shares(_SHARING // 8, _SHARING // 64)  # who has a place in the default row

    def has_room_for(self, uid: int) -> bool:
        """Whether there is a row for a user, or a place in the default row."""
        return self._table.has_row_for(uid) or self._shares.may_take(uid, _SHARING - len(self._groups.shared.members))

    @property
    def sharing(self) -> Mapping[int, int]:
        """How many processes of each user obey the node's default row, for want of one of their own."""
        return Counter(self._by_pid[pid].process.uid for pid in self._groups.shared.members)

    def house(self, process: Process, labels: Labels, default: int, why: str) -> tuple[Group, Row]:
        """Where one who is to be a target is put."""
        group = self._join(process.pid, labels, default, why == REGISTERED, process.uid)
        row = self._table.allocate(process.pid, *group.words, uid=process.uid)
        if row.number == DEFAULT_ROW:  # not its own
            self._leave(process.pid, group)
            group = self._groups.shared
            group.members.add(process.pid)
            self._shares.take(process.uid)
        return group, row

    def rehouse(self) -> Iterator[Target]:
        """Give rows of their own to those who share the default row, if some have become free since: each of them, as
        soon as it has one."""
        housed = 0
        for pid in sorted(self._groups.shared.members):
            target = self._by_pid[pid]
            if self._table.has_row_for(target.uid) and self._has_own_row(target):
                housed += 1
                yield target
            if housed >= _HOUSED_AT_ONCE:
                break

    def _has_own_row(self, target: Target) -> bool:
        """Whether there still is a row for who shared the default row: its group's operations take rows."""
        group = self._join(target.pid, target.labels, target.default, target.why == REGISTERED, target.uid)
        row = self._table.allocate(target.pid, *group.words, uid=target.uid)
        if row.number == DEFAULT_ROW:
            self._leave(target.pid, group)
            return False
        self._groups.shared.members.discard(target.pid)
        self._shares.give_back(target.uid)
        target.group, target.row, target.written = group, row, group.words
        return True

    def move(self, target: Target, labels: Labels, default: int) -> None:
        """Other labels, another default, or a hook: another group."""
        target.labels, target.default = labels, default
        if target.row.number != DEFAULT_ROW:
            left, hooked = target.group, target.why == REGISTERED
            if (left.labels, left.default, left.hooked) == (labels, default, hooked):
                return
            target.group = self._join(target.pid, labels, default, hooked, target.uid)
            self._rows.write_targets([target])
            self._leave(target.pid, left)

    def clear(self, target: Target) -> None:
        """It has ended: what it had is free."""
        self._table.free(target.row)
        if target.row.number == DEFAULT_ROW:
            self._shares.give_back(target.uid)
        self._leave(target.pid, target.group)
        self._rows.let_go([target.own])

    def _join(self, pid: int, labels: Labels, default: int, hooked: bool, uid: int) -> Group:
        group = self._groups.join(pid, labels, default, hooked, uid)
        if len(group.members) == 1:
            self._rows.let_go([self._rows.house(group, {})])
        return group

    def _leave(self, pid: int, group: Group) -> None:
        """One member less, whose row says nothing of the group any more."""
        self._groups.leave(pid, group)
        if not group.members and group is not self._groups.shared:
            self._rows.let_go([group.set])
            group.set = None
