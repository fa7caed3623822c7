"""Who is on this node, with which labels, in which row."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import structlog

from spandial.abi import DEFAULT_ROW, EntryKind, Flag
from spandial.labels import Labels
from spandial_agent.counters import CounterPage
from spandial_agent.discovery_rules import NAMED
from spandial_agent.kernel.capture import Capture, Counts
from spandial_agent.processes import Process
from spandial_agent.table import RateTable, Row
from spandial_api.rules import Rule, RuleBook
from spandial_api.selectors import Selector

__all__ = ["REGISTERED", "Target", "Targets"]

REGISTERED = "registered by its hook"

_Resolved = tuple[tuple[Rule | None, ...], list[int], int]

_log = structlog.get_logger("spandial.targets")


@dataclass
class Target:
    """A process that the agent controls.

    Attributes:
        default: the rate word where no rule applies.
        rules: the rule in force for each kind of entry; None where the default is.
        pages: the counter pages of its hooks; empty for a discovered process.
        written: the rates and the fallback in its row.
        base: what the kernel had counted when the first hook came.
        watched: the kernel counts and decides its entries.
        why: in a few words, why it is a target.
        by_rule: a rule of discovery included it, or the target that it was forked from.
    """

    process: Process
    labels: Labels
    default: int
    row: Row
    rules: tuple[Rule | None, ...] = ()
    pages: list[CounterPage] = field(default_factory=list)
    base: Counts | None = None
    written: tuple[list[int], int] = ([], 0)
    watched: bool = False
    why: str = NAMED
    by_rule: bool = False

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def hooked(self) -> bool:
        return bool(self.pages)


class Targets:
    """All targets. A row stays with its process until the process ends, whatever its hook does meanwhile.

    Attributes:
        emit: whether the kernel shall emit the kept entries of a process with these labels, which a hook registered or
            not: only while somebody reads them. Call `rewrite` when it answers differently.
        rate_of: the percentage that a rule has for processes with these labels.
        answers: whether it shall emit the answers to those of processes without a hook, too.
        on_program: called with each target that comes, and when it runs another program.
        on_ended: called with each target that goes, as on_removed is: one for who watches processes, one for who reads
            their records.
        unwatched: targets for which the kernel side had no room.

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
        self._book = RuleBook()
        self._resolved: dict[tuple[Labels, int, bool], _Resolved] = {}
        self.emit: Callable[[Labels, bool], bool] = lambda labels, hooked: False
        self.rate_of: Callable[[Rule, Labels], float] = _fixed_rate
        self.answers = False
        self.on_program: Callable[[Target], None] = lambda target: None
        self.on_ended: Callable[[Target], None] = lambda target: None
        self.unwatched = 0
        self._implausible = 0  # counts in pages that are closed
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
                known.labels = labels
                self._write(known)
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
        target.labels, target.default = labels, default
        target.why, target.by_rule = REGISTERED, False
        self._write(target)
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
        self._table.free(target.row)

    def apply(self, book: RuleBook) -> None:
        """Make all targets obey this book."""
        self._book = book
        self.rewrite()

    def rewrite(self) -> None:
        """Write every row anew: the book, or what is to be emitted, has changed."""
        self._resolved.clear()
        self._write_default()
        for target in self:
            self._write(target)
        self._table.advance()

    def reached(self) -> Counter[Selector]:
        """For each rule's selector, how many targets have at least one kind of entry under it."""
        return Counter(
            selector for target in self for selector in {rule.selector for rule in target.rules if rule is not None}
        )

    def _current(self, process: Process) -> Target | None:
        """The target that this process is; one of the same pid that started at another time has ended."""
        known = self._by_pid.get(process.pid)
        if known is not None and known.process.start_time != process.start_time:
            self.remove(process.pid)
            return None
        return known

    def _add(self, process: Process, labels: Labels, default: int, why: str, by_rule: bool) -> Target:
        rules, words, fallback = self._resolve(labels, default, why == REGISTERED)
        row = self._table.allocate(process.pid, words, fallback)
        target = Target(process, labels, default, row, rules, written=(words, fallback), why=why, by_rule=by_rule)
        self._by_pid[process.pid] = target
        if row.number == DEFAULT_ROW:
            self._write(target)
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

    def _write(self, target: Target) -> None:
        if target.row.number == DEFAULT_ROW:  # not its own: it obeys what holds for a process without labels
            target.rules = self._resolve(Labels(), self._default, False)[0]
            return
        target.rules, words, fallback = self._resolve(target.labels, target.default, target.why == REGISTERED)
        if target.written != (words, fallback):
            self._table.write(target.row, words, fallback)
            target.written = words, fallback

    def _write_default(self) -> None:
        _, words, fallback = self._resolve(Labels(), self._default, False)
        self._table.write_default(words, fallback)

    def _resolve(self, labels: Labels, default: int, hooked: bool) -> _Resolved:
        """Rules, rates and fallback of these labels; worked out once for all processes that have them."""
        known = self._resolved.get((labels, default, hooked))
        if known is not None:
            return known
        rules = tuple(self._book.resolve(labels, kind) for kind in EntryKind)
        emit = Flag.EMIT if self.emit(labels, hooked) else 0
        words = [(rule.word(self.rate_of(rule, labels)) if rule else default) | emit for rule in rules]
        fallback = default if self._book.fallback is None else self._book.fallback
        resolved = self._resolved[labels, default, hooked] = rules, words, fallback
        return resolved


def _fixed_rate(rule: Rule, _labels: Labels) -> float:
    return rule.floor if rule.rate is None else rule.rate
