"""A node without a kernel: it obeys books, and has the targets, counts and entries that a test gives it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

from spandial.abi import EntryKind, Mode
from spandial.labels import Labels
from spandial_api.breaker import Circuit
from spandial_api.budgets import Limits
from spandial_api.node import Asker, Connection
from spandial_api.node_states import (
    BudgetUse,
    EntryEvent,
    Health,
    NodeStats,
    RateState,
    TargetExplanation,
    TargetState,
    TenantUse,
)
from spandial_api.rules import RuleBook
from spandial_api.selectors import PROTOCOLS, KindName, Selector, selector_text

__all__ = ["FakeNode", "entry"]

_MODES = {Mode.FOLLOW: "follow", Mode.BOOST: "boost", Mode.STRICT: "strict"}


class FakeNode:
    """Implements the control plane's Node.

    Attributes:
        processes: the labels of its targets, all of one user.
        of_others: the labels of other users' targets, who have more of them.
        rates_of: the percentage that all targets of another user have, where that is not what the rules say.
        applied: every book it was told to obey.
        on_apply: called with each of them, while it is applied.
        entries: what a watcher reads.
        endless: whether its stream stays open after them, as a real node's does.
        watchers: how many streams are open.
        watched: the globs of the last of them.
        explained: what it says of processes.
        why: what it says of all its targets.
        limits: the budget and quotas that it was told to hold.
        limited: what it says holds all rates down.
        budget, tenants: what it says of budget and tenants.
        open_circuits: those that are not closed.
        off: why it was switched off.
        rates: what its targets have, where that is not what the rules say.
        askers: which of them have connections to it.
    """

    def __init__(self) -> None:
        self.processes: list[Labels] = []
        self.of_others: dict[int, list[Labels]] = {}
        self.rates_of: dict[int, float] = {}
        self.applied: list[RuleBook] = []
        self.on_apply: Callable[[RuleBook], None] = lambda book: None
        self.entries: list[EntryEvent] = []
        self.endless = False
        self.watchers = 0
        self.watched = ("", "")
        self.counts = NodeStats(targets=[], losses={})
        self.missing: list[str] = []
        self.explained: dict[int, TargetExplanation] = {}
        self.why = ""
        self.limits = Limits()
        self.limited = ""
        self.budget = BudgetUse(demand=None, limited=0)
        self.tenants: list[TenantUse] = []
        self.open_circuits: dict[str, Circuit] = {}
        self.off = ""
        self.rates: dict[EntryKind, float] = {}
        self.askers: dict[Connection, Labels] = {}

    def apply(self, book: RuleBook) -> None:
        self.on_apply(book)
        self.applied.append(book)

    def targets(self) -> list[TargetState]:
        return [self._target(number, labels) for number, labels in enumerate(self.processes)]

    def labels(self, service: str | None = None) -> dict[int, set[Labels]]:
        everybody = {1000: self.processes, **self.of_others}
        return {uid: {each for each in all_ if service in (None, each.service)} for uid, all_ in everybody.items()}

    async def asker(self, services: Sequence[str], connection: Connection, uid: int | None = None) -> Asker | None:
        labels = self.askers.get(Connection(*connection[:3]))
        if labels is None or labels.service not in services:
            return None
        users = [user for user, own in {**self.of_others, 1000: self.processes}.items() if labels in own]
        return next((Asker(labels, user) for user in users if uid in (None, user)), None)

    def rate(self, labels: Labels, kind: EntryKind, uid: int | None = None) -> float | None:
        for user, rate in self.rates_of.items():
            if uid in (None, user) and labels in self.of_others[user]:
                return rate
        return self.rates.get(kind) if uid in (None, 1000) and labels in self.processes else None

    async def explain(self, pid: int) -> TargetExplanation:
        nobody = TargetExplanation(pid=pid, name="", target=False, why="no such process", rules=[])
        return self.explained.get(pid, nobody)

    def reached(self) -> Counter[Selector]:
        rules = {rule.selector: selector_text(rule.selector) for rule in self.applied[-1]}
        return Counter(
            selector
            for target in self.targets()
            for selector, text in rules.items()
            if text in {state.rule for state in target.rates.values()}
        )

    def reached_by(self, selector: Selector) -> int:
        return self.reached()[selector]

    def switch(self, off: str) -> None:
        self.off = off

    def limit(self, limits: Limits) -> None:
        self.limits = limits

    def budget_use(self) -> BudgetUse:
        return self.budget

    def tenant_uses(self) -> list[TenantUse]:
        return self.tenants

    def circuits(self) -> dict[str, Circuit]:
        return dict(self.open_circuits)

    def restore(self, circuits: Mapping[str, Circuit]) -> None:
        self.open_circuits = dict(circuits)

    async def stats(self) -> NodeStats:
        return self.counts

    def health(self) -> Health:
        return Health(
            status="degraded" if self.missing else "ok",
            version="0",
            table="memfd",
            capture="off",
            discovery="scan",
            missing=self.missing,
            targets=len(self.processes),
            free_rows=4096 - len(self.processes),
            refused_rows=0,
            lease_seconds=10,
            revision=self.applied[-1].revision,
        )

    @asynccontextmanager
    async def watch(self, service: str, env: str) -> AsyncIterator[AsyncIterator[EntryEvent]]:
        self.watchers += 1
        self.watched = (service, env)
        try:
            yield self._events()
        finally:
            self.watchers -= 1

    async def _events(self) -> AsyncIterator[EntryEvent]:
        for event in self.entries:
            yield event
        if self.endless:
            await asyncio.Event().wait()

    def _target(self, number: int, labels: Labels) -> TargetState:
        book = self.applied[-1]
        rates: dict[KindName, RateState] = {}
        for name, kind in PROTOCOLS.items():
            rule = book.resolve(labels, kind)
            rates[name] = RateState.model_validate(
                {
                    "rate": 100.0 if rule is None else rule.floor if rule.rate is None else rule.rate,
                    "mode": _MODES[rule.mode] if rule else "follow",
                    "rule": selector_text(rule.selector) if rule else "default",
                    "limited": self.limited,
                }
            )
        return TargetState(
            pid=1000 + number,
            name="python",
            **labels._asdict(),
            kind="hooked",
            row=2 + number,
            rates=rates,
            why=self.why,
        )


def entry(service: str = "checkout", env: str = "gray", path: str = "/") -> EntryEvent:
    return EntryEvent(
        time=1.5,
        pid=1000,
        service=service,
        version="v1",
        env=env,
        kind="http",
        protocol="http/1",
        method="GET",
        path=path,
        trace_id="0af7651916cd43dd8448eb211c80319c",
        parent_span_id="b7ad6b7169203331",
        kept_by="rate",
    )
