"""Who is on this node, with which labels, in which row."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import chain

from spandial.labels import Labels
from spandial_agent.capture.capture import Capture
from spandial_agent.processes.counter_page import CounterPage
from spandial_agent.processes.proc import NAMED, Process
from spandial_agent.table.rates import RateTable
from spandial_agent.targets.groups import Groups
from spandial_agent.targets.housing import Housing
from spandial_agent.targets.limit import Limit
from spandial_agent.targets.no_collection import no_collection
from spandial_agent.targets.operation_sets import OperationSets
from spandial_agent.targets.rows import TargetRows
from spandial_agent.targets.target import REGISTERED, Target
from spandial_agent.targets.watching import Watching
from spandial_api.rules import Rule, RuleBook
from spandial_api.selectors import Selector

__all__ = ["Targets"]


class Targets:
    """All targets. A row stays with its process until the process ends, whatever its hook does meanwhile.

    Attributes:
        emit: whether the kernel shall emit the kept entries of a process with these labels, which a hook registered or
            not: only while somebody reads them. Call `rewrite` when it answers differently.
        rate_of: the percentage that a rule has for a user's processes with these labels. Call `refresh` when it answers
            differently for rules with a target; a rule with a rate of its own always has that.
        on_program: called with each target that comes, and when it runs another program.
        on_ended: called with each target that goes, as on_removed is: one for who watches processes, one for who reads
            their records.
        on_housed: called with each target that has had to share the node's default row, and has a row of its own now.
        crowded: how often a process was made no target, since those of its user were more than his share.
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
        self._watching = Watching(capture)
        self.on_added = on_added
        self.on_removed = on_removed
        self._by_pid: dict[int, Target] = {}
        self.emit: Callable[[Labels, bool], bool] = lambda labels, hooked: False
        self.rate_of: Callable[[Rule, Labels, int], float] = _fixed_rate
        self.on_program: Callable[[Target], None] = lambda target: None
        self.on_ended: Callable[[Target], None] = lambda target: None
        self.on_housed: Callable[[Target], None] = lambda target: None
        self.crowded = 0
        self.operations = OperationSets(table, capture)
        self._implausible = 0  # counts in pages that are closed
        # By name: both may be replaced at any time.
        self._groups = Groups(
            default,
            emit=lambda labels, hooked: self.emit(labels, hooked),
            percent_of=lambda rule, labels, uid: self.rate_of(rule, labels, uid),
        )
        self._rows = TargetRows(
            table,
            self.operations,
            self._groups,
            self._by_pid,
            lambda rule, labels, uid: self.rate_of(rule, labels, uid),
        )
        self._rows.on_turned = self._watching.turned
        self._housing = Housing(table, self._groups, self._rows, self._by_pid)

    def __iter__(self) -> Iterator[Target]:
        return iter(list(self._by_pid.values()))  # whoever looks at them may remove them

    def __len__(self) -> int:
        return len(self._by_pid)

    @property
    def answers(self) -> bool:
        """Whether the kernel shall emit the answers to the kept entries of processes without a hook, too."""
        return self._watching.answers

    @answers.setter
    def answers(self, answers: bool) -> None:
        self._watching.answers = answers

    @property
    def unwatched(self) -> int:
        """Targets for which the kernel side had no room."""
        return self._watching.unwatched

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
        if not self.has_room_for(process):
            self.crowded += 1
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
                self._housing.move(known, labels, known.default)
        elif known.by_rule:
            self.remove(known.pid)
            return None
        return known

    def exclude(self, process: Process) -> None:
        """A rule excludes this process. Who registers is a target all the same."""
        known = self._current(process)
        if known is not None and known.why != REGISTERED:
            self.remove(known.pid)

    def has_room_for(self, process: Process) -> bool:
        """Whether it is a target or may become one: there is a row for its user, or a place in the default row."""
        return self._current(process) is not None or self._housing.has_room_for(process.uid)

    @property
    def sharing(self) -> Mapping[int, int]:
        """How many processes of each user obey the node's default row, for want of one of their own."""
        return self._housing.sharing

    def hook(self, process: Process, labels: Labels, default: int, page: CounterPage) -> Target:
        """A process registered: its labels and its own default hold from now on."""
        target = self._current(process) or self._add(process, labels, default, REGISTERED, by_rule=False)
        self._watching.hook(target)
        target.pages.append(page)
        target.why, target.by_rule = REGISTERED, False
        self._housing.move(target, labels, default)
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
        self._watching.forget(pid)  # the kernel first: it must not find the row of somebody new
        for page in target.pages:
            self._close(page)
        target.pages.clear()
        self._rows.limits.pop(pid, None)
        self._housing.clear(target)

    def apply(self, book: RuleBook) -> None:
        """Make all targets obey this book. What it costs goes with what differs from the last one: only rows whose
        words have changed are written. Every reader has them when this returns."""
        with no_collection():
            self._rows.write(self._groups.apply(book))
            self._rows.house_homeless()  # some may find the room now that others have left
            self._table.advance()

    def lease_ended(self) -> None:
        """All obeyed their fallback words since the lease ended, and now obey their rules again."""
        self._watching.lease_ended([*self])

    def find_room(self) -> None:
        """Give rows of their own to those who share the node's default row, and have rules by operation obeyed for
        which there was no room, if some rows have become free since."""
        for target in self._housing.rehouse():
            self._watching.move(target)
            self.on_housed(target)
        for target in self._watching.find_room(self._by_pid):
            self.on_housed(target)  # its hooks count from zero, as the kernel does
        self._rows.find_room()

    def rewrite(self) -> None:
        """Write what is to be emitted: `emit` answers differently."""
        self._rows.write(self._groups.review())
        self._table.advance()

    def refresh(self, services: Collection[str] | None = None) -> None:
        """Write the rates of rules with a target: `rate_of` answers differently for these services; None: for any."""
        self._rows.write(self._groups.steer(services))

    @property
    def book(self) -> RuleBook:
        """What they obey."""
        return self._groups.book

    @property
    def limits(self) -> Mapping[int, Limit]:
        """By pid: what holds a target's rates below those of its rules, and below the default that it brought."""
        return self._rows.limits

    def set_limits(self, limits: Mapping[int, Limit]) -> None:
        """Replace all limits. A target's ends with it; one without a row of its own has none. The fallback is not
        limited. Who is no target is passed over."""
        self._rows.replace_limits(limits)

    def labels(self, service: str | None = None) -> Mapping[int, set[Labels]]:
        """The labels of each user's targets, each once; of one service, or of all."""
        shared = (self._by_pid[pid] for pid in self._groups.shared.members)
        found: dict[int, set[Labels]] = {}
        for uid, labels in chain(self._groups.labels(service), ((each.uid, each.labels) for each in shared)):
            if service in (None, labels.service):
                found.setdefault(uid, set()).add(labels)
        return found

    def of_service(self, service: str, uid: int | None = None) -> list[int]:
        """The pids of a service's targets that have rows of their own; of one user, or of all."""
        groups = (group for group in self._groups.of_service(service) if uid in (None, group.uid))
        return [pid for group in groups for pid in sorted(group.members)]

    def alike(self, labels: Labels, uid: int | None = None) -> Target | None:
        """One of the targets of a user with exactly these labels and a row of its own. Without a user, one of the user
        who has most."""
        groups = (group for group in self._groups.of(labels) if uid in (None, group.uid))
        found = sorted(groups, key=lambda group: (-len(group.members), group.uid))
        return next((self._by_pid[pid] for group in found for pid in group.members), None)

    def reached(self) -> Mapping[Selector, int]:
        """For each rule's selector, how many targets have at least some entries under it."""
        return self._groups.reached()

    def reached_by(self, selector: Selector) -> int:
        """The same for one of them, at the cost of its own targets where it names a label without a wildcard."""
        return self._groups.reached_by(selector)

    def _current(self, process: Process) -> Target | None:
        """The target that this process is; one of the same pid that started at another time, or ran another user's
        program, has ended."""
        known = self._by_pid.get(process.pid)
        if known is None:
            return None
        # A program that runs as another user (execve(2) of a set-user-id file) owes nothing to the last one.
        other_user = known.uid != process.uid and known.process.image != process.image
        if other_user or known.process.start_time != process.start_time:
            self.remove(process.pid)
            return None
        return known

    def _add(self, process: Process, labels: Labels, default: int, why: str, by_rule: bool) -> Target:
        group, row = self._housing.house(process, labels, default, why)
        target = Target(process, labels, default, row, group, group.words, process.uid, why=why, by_rule=by_rule)
        self._by_pid[process.pid] = target
        self._watching.watch(target)
        self.on_added(target)
        self.on_program(target)
        return target

    def _close(self, page: CounterPage) -> None:
        self._implausible += page.implausible
        page.close()


def _fixed_rate(rule: Rule, _labels: Labels, _uid: int) -> float:
    return rule.floor if rule.rate is None else rule.rate
