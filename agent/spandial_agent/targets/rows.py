"""What targets obey, written: their rows, and the sets of rules by operation that these name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

from spandial.abi import DEFAULT_ROW, EntryKind
from spandial.labels import Labels
from spandial_agent.processes.counter_page import PageCount
from spandial_agent.table.rates import RateTable, Row
from spandial_agent.targets.group import Group, RowWords
from spandial_agent.targets.groups import Groups
from spandial_agent.targets.limit import Limit
from spandial_agent.targets.operation_sets import OperationSet, OperationSets
from spandial_agent.targets.target import COMPARED, Target
from spandial_api.rules import Rule

__all__ = ["TargetRows", "Turned", "turning"]


class Turned(NamedTuple):
    """Rates of a process with a hook that turn.

    Attributes:
        pages: what its hooks had reported before, by the kind of entry.
        certain: the rates are its row's own, and no rates of operations.
    """

    target: Target
    pages: Mapping[EntryKind, Sequence[PageCount]]
    certain: bool


def turning(target: Target, kinds: Iterable[EntryKind], *, certain: bool) -> Turned:
    """To be called before the new rates can be read: a hook may report at any time."""
    return Turned(target, {kind: [page.traced(kind) for page in target.pages] for kind in kinds}, certain)


def _differing(before: RowWords, after: RowWords) -> list[EntryKind]:
    return [kind for kind in COMPARED if before.rates[kind : kind + 1] != after.rates[kind : kind + 1]]


class TargetRows:
    """The rows of all targets. Each set that a row names is let go only after the row names another.

    Attributes:
        operations: the sets.
        limits: by pid, what holds a target's rates below those of its rules.
        on_turned: called with the turns that have just been written.

    Args:
        by_pid: the targets, whoever they are at the time.
        percent_of: the percentage that a rule has for a user's processes with these labels.
    """

    def __init__(
        self,
        table: RateTable,
        operations: OperationSets,
        groups: Groups,
        by_pid: Mapping[int, Target],
        percent_of: Callable[[Rule, Labels, int], float],
    ) -> None:
        self.operations = operations
        self.limits: dict[int, Limit] = {}
        self._table = table
        self._groups = groups
        self._by_pid = by_pid
        self._percent_of = percent_of
        self.on_turned: Callable[[Sequence[Turned]], None] = lambda turned: None
        self._free_before = table.free_rows
        self.write_default()

    def replace_limits(self, limits: Mapping[int, Limit]) -> None:
        before = self.limits
        self.limits = {pid: limit for pid, limit in limits.items() if pid in self._by_pid}
        changed = [pid for pid in {*before, *self.limits} if before.get(pid) != self.limits.get(pid)]
        self.write_targets(self._by_pid[pid] for pid in changed)

    def house(self, group: Group, housed: dict[Hashable, OperationSet]) -> OperationSet | None:
        """Put the rates of a group's operations where its members find them. What they obeyed before: to be let go
        once no row names it.

        Args:
            housed: where those of groups that are alike were put just now.
        """
        before, group.set = group.set, None
        if group.operations:
            known = housed.get(group.alike)
            if known is None:
                known = self.operations.take(group.scope, group.operation_words(self._percent_of))
                housed[group.alike] = group.set = known
            else:
                group.set = self.operations.share(known)
        if group.set is not before or (before is not None and before.named != group.words.operations):
            group.words = group.row()
        return before

    def house_homeless(self) -> None:
        """Look for room for the sets for which there was none."""
        if not self.operations.refused or not self.operations.homeless:
            return
        self.write([group for group in self._groups if group.set and not group.set.named])
        self.write_targets(target for target in self._by_pid.values() if target.own and not target.own.named)

    def find_room(self) -> None:
        """Have rules by operation obeyed for which there was no room, if some rows have become free since."""
        free = self._table.free_rows
        if free > self._free_before:
            self.house_homeless()
        self._free_before = self._table.free_rows

    def let_go(self, sets: Iterable[OperationSet | None]) -> None:
        for one in sets:
            if one is not None:
                self.operations.let_go(one)

    def write(self, groups: Collection[Group]) -> None:
        housed: dict[Hashable, OperationSet] = {}
        # Rates of operations are in rows of their own.
        members = (pid for group in groups if group.hooked and (group.operations or group.set) for pid in group.members)
        by_operation = [turning(self._by_pid[pid], COMPARED, certain=False) for pid in members]
        before = [self.house(group, housed) for group in groups]
        if self._groups.shared in groups:
            self.write_default()
        self.write_targets(
            self._by_pid[pid] for group in groups if group is not self._groups.shared for pid in group.members
        )
        self.on_turned(by_operation)
        self.let_go(before)

    def write_targets(self, targets: Iterable[Target]) -> None:
        """Write the rows that differ from what they should say."""
        changed: dict[RowWords, list[Row]] = {}
        turned: list[Turned] = []
        before: list[OperationSet | None] = []
        limited: dict[Hashable, OperationSet] = {}
        for target in targets:
            before.append(target.own)
            words = self._words(target, limited)
            if words != target.written:
                changed.setdefault(words, []).append(target.row)
                if target.pages:
                    kinds = _differing(target.written, words)
                    turned.append(turning(target, kinds, certain=target.operations is None))
                target.written = words
        for words, rows in changed.items():
            self._table.write_many(rows, *words)
        self.on_turned(turned)
        self.let_go(before)

    def _words(self, target: Target, limited: dict[Hashable, OperationSet]) -> RowWords:
        """What a target's row is to say.

        Args:
            limited: where the rates of the operations of those who are alike under one limit were put just now.
        """
        limit, group, before = self.limits.get(target.pid), target.group, target.own
        target.own = None
        if limit is None or target.row.number == DEFAULT_ROW:
            return group.words
        if group.operations and limit.factor < 1:  # nobody has the same factor for long
            has_room = (before and before.named) or self._table.has_operation_rows(len(group.operations))
            rules = group.operation_words(self._percent_of, limit) if has_room else ()  # refused: not at a look at each
            target.own = self.operations.take(target.pid, rules)
        elif group.operations:
            known = limited.get((limit, group.alike))
            if known is None:
                known = self.operations.take((limit, group.scope), group.operation_words(self._percent_of, limit))
                limited[limit, group.alike] = target.own = known
            else:
                target.own = self.operations.share(known)
        return group.row(limit, target.own)

    def write_default(self) -> None:
        self._table.write_default(*self._groups.shared.words)
