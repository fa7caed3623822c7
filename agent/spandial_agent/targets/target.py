"""A target: a process that the agent controls."""

from __future__ import annotations

from dataclasses import dataclass, field

from spandial.abi import DEFAULT_ROW, EntryKind
from spandial.labels import Labels
from spandial_agent.capture.counts import Counts
from spandial_agent.processes.counter_page import CounterPage
from spandial_agent.processes.proc import NAMED, Process
from spandial_agent.table.rates import Row
from spandial_agent.targets.group import Group, RowWords
from spandial_agent.targets.in_flight import InFlight
from spandial_agent.targets.operation_sets import OperationSet
from spandial_api.rules import Rule

__all__ = ["COMPARED", "REGISTERED", "Target"]

REGISTERED = "registered by its hook"
# Of these, kernel and hook both see all that have a trace context.
COMPARED = (EntryKind.HTTP, EntryKind.GRPC)


@dataclass
class Target:
    """A process that the agent controls.

    Attributes:
        default: the rate word where no rule applies.
        group: those who obey as it does; of all without a row of their own, where it has none.
        uid: the user whose share its row is of: whom it ran as when it became a target.
        pages: the counter pages of its hooks; empty for a discovered process.
        written: what its row says; in the node's default row, nobody keeps it up.
        own: where the rates of its operations are, if it has a limit.
        base: what the kernel had counted when the first hook came.
        in_flight: requests that were between kernel and hook when a rate of its own turned, by kind of entry.
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
    uid: int = 0
    pages: list[CounterPage] = field(default_factory=list)
    own: OperationSet | None = None
    base: Counts | None = None
    in_flight: dict[EntryKind, InFlight] = field(default_factory=lambda: {kind: InFlight() for kind in COMPARED})
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
    def counts_alone(self) -> bool:
        """The kernel counts in its row, and nobody else's entries there."""
        return self.watched and self.row.number != DEFAULT_ROW

    @property
    def hooked(self) -> bool:
        return bool(self.pages)
