"""Who is on this node, with which labels, in which row."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog

from spandial.abi import DEFAULT_ROW
from spandial.labels import Labels
from spandial_agent.counters import CounterPage
from spandial_agent.discovery_rules import NAMED
from spandial_agent.group import Group, RowWords
from spandial_agent.groups import Groups
from spandial_agent.kernel.capture import Capture, Counts
from spandial_agent.limiting import Limit
from spandial_agent.operations import OperationSet, OperationSets
from spandial_agent.processes import Process
from spandial_agent.table import RateTable, Row
from spandial_api.rules import Rule, RuleBook
from spandial_api.selectors import Selector

__all__ = ["REGISTERED", "Target", "Targets"]

REGISTERED = "registered by its hook"

_log = structlog.get_logger("spandial.targets")


@dataclass
class Target:
    """A process that the agent controls.

    Attributes:
        default: the rate word where no rule applies.
        group: those who obey as it does; of all without a row of their own, where it has none.
        pages: the counter pages of its hooks; empty for a discovered process.
        written: what its row says; in the node's default row, nobody keeps it up.
        own: where the rates of its operations are, if it has a limit.
        base: what the kernel had counted when the first hook came.
        watched: the kernel counts and decides its entries.
        why: in a few words, why it is a target.
        by_rule: a rule of discovery included it, or the target that it was forked from.
    """

    process: Process
    labels: Labels
    default: int
    row: Row
    group: Group
    written: RowWords
    pages: list[CounterPage] = field(default_factory=list)
    own: OperationSet | None = None
    base: Counts | None = None
    watched: bool = False
    why: str = NAMED
    by_rule: bool = False

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def rules(self) -> tuple[Rule | None, ...]:
        """The rule in force for each kind of entry; None where the default is."""
        return self.group.rules

    @property
    def operations(self) -> OperationSet | None:
        """The rules by operation, with the rates that this target has."""
        return self.own or self.group.set

    @property
    def hooked(self) -> bool:
        return bool(self.pages)


class Targets:
    """All targets. A row stays with its process until the process ends, whatever its hook does meanwhile.

    Attributes:
        emit: whether the kernel shall emit the kept entries of a process with these labels, which a hook registered or
            not: only while somebody reads them. Call `rewrite` when it answers differently.
        rate_of: the percentage that a rule has for processes with these labels. Call `refresh` when it answers
            differently for rules with a target; a rule with a rate of its own always has that.
        answers: whether it shall emit the answers to those of processes without a hook, too.
        on_program: called with each target that comes, and when it runs another program.
        on_ended: called with each target that goes, as on_removed is: one for who watches processes, one for who reads
            their records.
        unwatched: targets for which the kernel side had no room.
        operations: the rules by operation that they obey.

    Args:
        table: where their rates are.
        default: the rate word of targets that brought none of their own and have no rule.
        capture: the kernel side, if there is one.
        on_added, on_removed: called with each target that comes and goes.
    """

    def __init__(
        self,
        table: RateTable,
        default: int,
        capture: Capture | None = None,
        on_added: Callable[[Target], None] = lambda target: None,
        on_removed: Callable[[Target], None] = lambda target: None,
    ) -> None:
        self._table = table
        self._default = default
        self._capture = capture
        self.on_added = on_added
        self.on_removed = on_removed
        self._by_pid: dict[int, Target] = {}
        self._limits: dict[int, Limit] = {}
        self.emit: Callable[[Labels, bool], bool] = lambda labels, hooked: False
        self.rate_of: Callable[[Rule, Labels], float] = _fixed_rate
        self.answers = False
        self.on_program: Callable[[Target], None] = lambda target: None
        self.on_ended: Callable[[Target], None] = lambda target: None
        self.unwatched = 0
        self.operations = OperationSets(table, capture)
        self._free_before = table.free_rows
        self._implausible = 0  # counts in pages that are closed
        # By name: both may be replaced at any time.
        self._groups = Groups(
            default,
            emit=lambda labels, hooked: self.emit(labels, hooked),
            percent_of=lambda rule, labels: self.rate_of(rule, labels),
        )
        self._write_default()

    def __iter__(self) -> Iterator[Target]:
        return iter(list(self._by_pid.values()))  # whoever looks at them may remove them

    def __len__(self) -> int:
        return len(self._by_pid)

    @property
    def implausible(self) -> int:
        """How often a count of a hook went backwards or beyond belief, and was ignored."""
        return self._implausible + sum(page.implausible for target in self for page in target.pages)

    def get(self, pid: int) -> Target | None:
        return self._by_pid.get(pid)

    def discover(
        self, process: Process, parent: Target | None = None, why: str = NAMED, by_rule: bool = False
    ) -> Target | None:
        """Make a process a target if its labels, or the target it was forked from, name a service.

        A target stays one until it ends: its environment and command line may be overwritten. One that a rule included
        stays until it runs another program; while it runs the same, only a rule changes its labels.

        Args:
            process: with the labels that it is to have as a target.
            why: what they come from; `by_rule` if that is a rule.
        """
        if parent is not None and parent.by_rule and parent.process.image != process.image:
            parent = None  # an exec has come since the fork, and what the rule said was about the other program
        labels = process.labels
        if parent is not None and not labels.service:
            labels, why, by_rule = parent.labels, f"forked from {parent.pid}, a target", parent.by_rule
        known = self._current(process)
        if known is not None:
            return self._see_again(known, process, labels, why, by_rule)
        if not labels.service or process.pid == os.getpid():
            return None
        return self._add(process, labels, parent.default if parent else self._default, why, by_rule)

    def _see_again(self, known: Target, process: Process, labels: Labels, why: str, by_rule: bool) -> Target | None:
        same_program = known.process.image == process.image
        known.process = process
        if not same_program:
            self.on_program(known)
        if known.hooked or (known.by_rule and same_program and not by_rule):
            return known
        if labels.service:
            if known.why != REGISTERED:
                known.why, known.by_rule = why, by_rule
            if labels != known.labels:
                self._move(known, labels, known.default)
        elif known.by_rule:
            self.remove(known.pid)
            return None
        return known

    def exclude(self, process: Process) -> None:
        """A rule excludes this process. Who registers is a target all the same."""
        known = self._current(process)
        if known is not None and known.why != REGISTERED:
            self.remove(known.pid)

    def hook(self, process: Process, labels: Labels, default: int, page: CounterPage) -> Target:
        """A process registered: its labels and its own default hold from now on."""
        target = self._current(process) or self._add(process, labels, default, REGISTERED, by_rule=False)
        if not target.hooked and self._capture is not None and target.watched:
            target.base = self._capture.counts(target.row.number)
            self._capture.want_answers(target.pid, target.row, False)
        target.pages.append(page)
        target.why, target.by_rule = REGISTERED, False
        self._move(target, labels, default)
        return target

    def unhook(self, target: Target, page: CounterPage) -> None:
        """A hook's connection ended. Its process may live on and read the row: the row stays."""
        if page in target.pages:
            target.pages.remove(page)
            self._close(page)

    def remove(self, pid: int) -> None:
        """The process ended."""
        target = self._by_pid.pop(pid, None)
        if target is None:
            return
        self.on_removed(target)
        self.on_ended(target)
        if self._capture is not None:
            self._capture.remove_target(pid)  # the kernel first: it must not find the row of somebody new
        for page in target.pages:
            self._close(page)
        target.pages.clear()
        self._limits.pop(pid, None)
        self._table.free(target.row)
        self._leave(pid, target.group)
        self._let_go([target.own])

    def apply(self, book: RuleBook) -> None:
        """Make all targets obey this book. What it costs goes with what differs from the last one: only rows whose
        words have changed are written. Every reader has them when this returns."""
        with _no_collection():
            self._write(self._groups.apply(book))
            self._house_homeless()  # some may find the room now that others have left
            self._table.advance()

    def find_room(self) -> None:
        """Have rules by operation obeyed for which there was no room, if some rows have become free since."""
        free = self._table.free_rows
        if free > self._free_before:
            self._house_homeless()
        self._free_before = self._table.free_rows

    def rewrite(self) -> None:
        """Write what is to be emitted: `emit` answers differently."""
        self._write(self._groups.review())
        self._table.advance()

    def refresh(self, services: Collection[str] | None = None) -> None:
        """Write the rates of rules with a target: `rate_of` answers differently for these services; None: for any."""
        self._write(self._groups.steer(services))

    @property
    def book(self) -> RuleBook:
        """What they obey."""
        return self._groups.book

    @property
    def limits(self) -> Mapping[int, Limit]:
        """By pid: what holds a target's rates below those of its rules, and below the default that it brought."""
        return self._limits

    def set_limits(self, limits: Mapping[int, Limit]) -> None:
        """Replace all limits. A target's ends with it; one without a row of its own has none. The fallback is not
        limited. Who is no target is passed over."""
        before = self._limits
        self._limits = {pid: limit for pid, limit in limits.items() if pid in self._by_pid}
        changed = [pid for pid in {*before, *self._limits} if before.get(pid) != self._limits.get(pid)]
        self._write_targets(self._by_pid[pid] for pid in changed)

    def labels(self, service: str | None = None) -> set[Labels]:
        """The labels of the targets, each once; of one service, or of all."""
        shared = (self._by_pid[pid].labels for pid in self._groups.shared.members)
        return {*self._groups.labels(service), *(each for each in shared if service in (None, each.service))}

    def of_service(self, service: str) -> list[int]:
        """The pids of a service's targets that have rows of their own."""
        return [pid for group in self._groups.of_service(service) for pid in sorted(group.members)]

    def alike(self, labels: Labels) -> Target | None:
        """One of the targets with exactly these labels and a row of its own."""
        return next((self._by_pid[pid] for group in self._groups.of(labels) for pid in group.members), None)

    def reached(self) -> Mapping[Selector, int]:
        """For each rule's selector, how many targets have at least some entries under it."""
        return self._groups.reached()

    def reached_by(self, selector: Selector) -> int:
        """The same for one of them, at the cost of its own targets where it names a label without a wildcard."""
        return self._groups.reached_by(selector)

    def _current(self, process: Process) -> Target | None:
        """The target that this process is; one of the same pid that started at another time has ended."""
        known = self._by_pid.get(process.pid)
        if known is not None and known.process.start_time != process.start_time:
            self.remove(process.pid)
            return None
        return known

    def _add(self, process: Process, labels: Labels, default: int, why: str, by_rule: bool) -> Target:
        group = self._join(process.pid, labels, default, why == REGISTERED)
        row = self._table.allocate(process.pid, *group.words)
        if row.number == DEFAULT_ROW:  # not its own
            self._leave(process.pid, group)
            group = self._groups.shared
            group.members.add(process.pid)
        target = Target(process, labels, default, row, group, group.words, why=why, by_rule=by_rule)
        self._by_pid[process.pid] = target
        if self._capture is not None:
            try:
                self._capture.add_target(process.pid, row, self.answers and why != REGISTERED)
                target.watched = True
            except OSError as error:  # its map is full: the hooks of further processes obey all the same
                self.unwatched += 1
                _log.warning("the kernel does not watch a process", pid=process.pid, error=str(error))
        self.on_added(target)
        self.on_program(target)
        return target

    def _close(self, page: CounterPage) -> None:
        self._implausible += page.implausible
        page.close()

    def _move(self, target: Target, labels: Labels, default: int) -> None:
        """Other labels, another default, or a hook: another group."""
        target.labels, target.default = labels, default
        if target.row.number != DEFAULT_ROW:
            left, hooked = target.group, target.why == REGISTERED
            if (left.labels, left.default, left.hooked) == (labels, default, hooked):
                return
            target.group = self._join(target.pid, labels, default, hooked)
            self._write_targets([target])
            self._leave(target.pid, left)

    def _join(self, pid: int, labels: Labels, default: int, hooked: bool) -> Group:
        group = self._groups.join(pid, labels, default, hooked)
        if len(group.members) == 1:
            self._let_go([self._house(group, {})])
        return group

    def _leave(self, pid: int, group: Group) -> None:
        """One member less, whose row says nothing of the group any more."""
        self._groups.leave(pid, group)
        if not group.members and group is not self._groups.shared:
            self._let_go([group.set])
            group.set = None

    def _house(self, group: Group, housed: dict[Hashable, OperationSet]) -> OperationSet | None:
        """Put the rates of a group's operations where its members find them. What they obeyed before: to be let go
        once no row names it.

        Args:
            housed: where those of groups that are alike were put just now.
        """
        before, group.set = group.set, None
        if group.operations:
            known = housed.get(group.alike)
            if known is None:
                known = self.operations.take(group.scope, group.operation_words(self.rate_of))
                housed[group.alike] = group.set = known
            else:
                group.set = self.operations.share(known)
        if group.set is not before or (before is not None and before.named != group.words.operations):
            group.words = group.row()
        return before

    def _house_homeless(self) -> None:
        if not self.operations.refused or not self.operations.homeless:
            return
        self._write([group for group in self._groups if group.set and not group.set.named])
        self._write_targets(target for target in self if target.own and not target.own.named)

    def _let_go(self, sets: Iterable[OperationSet | None]) -> None:
        for one in sets:
            if one is not None:
                self.operations.let_go(one)

    def _write(self, groups: Collection[Group]) -> None:
        housed: dict[Hashable, OperationSet] = {}
        before = [self._house(group, housed) for group in groups]
        if self._groups.shared in groups:
            self._write_default()
        self._write_targets(
            self._by_pid[pid] for group in groups if group is not self._groups.shared for pid in group.members
        )
        self._let_go(before)

    def _write_targets(self, targets: Iterable[Target]) -> None:
        """Write the rows that differ from what they should say."""
        changed: dict[RowWords, list[Row]] = {}
        before: list[OperationSet | None] = []
        limited: dict[Hashable, OperationSet] = {}
        for target in targets:
            before.append(target.own)
            words = self._words(target, limited)
            if words != target.written:
                changed.setdefault(words, []).append(target.row)
                target.written = words
        for words, rows in changed.items():
            self._table.write_many(rows, *words)
        self._let_go(before)

    def _words(self, target: Target, limited: dict[Hashable, OperationSet]) -> RowWords:
        """What a target's row is to say.

        Args:
            limited: where the rates of the operations of those who are alike under one limit were put just now.
        """
        limit, group, before = self._limits.get(target.pid), target.group, target.own
        target.own = None
        if limit is None or target.row.number == DEFAULT_ROW:
            return group.words
        if group.operations and limit.factor < 1:  # nobody has the same factor for long
            has_room = (before and before.named) or self._table.has_operation_rows(len(group.operations))
            rules = group.operation_words(self.rate_of, limit) if has_room else ()  # refused: not at a look at each
            target.own = self.operations.take(target.pid, rules)
        elif group.operations:
            known = limited.get((limit, group.alike))
            if known is None:
                known = self.operations.take((limit, group.scope), group.operation_words(self.rate_of, limit))
                limited[limit, group.alike] = target.own = known
            else:
                target.own = self.operations.share(known)
        return group.row(limit, target.own)

    def _write_default(self) -> None:
        self._table.write_default(*self._groups.shared.words)


@contextmanager
def _no_collection() -> Iterator[None]:
    """On a full node a garbage collection takes as long as a change of all rates: it can wait until that is obeyed."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _fixed_rate(rule: Rule, _labels: Labels) -> float:
    return rule.floor if rule.rate is None else rule.rate
