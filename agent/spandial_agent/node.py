"""The node: table, targets and capture as the control plane sees them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from importlib.metadata import version

import structlog

from spandial import abi
from spandial.abi import EntryKind, word_rate
from spandial.labels import Labels
from spandial_agent.capture.capture import Capture
from spandial_agent.capture.cost import CostLimit, keep_within
from spandial_agent.capture.counts import Counts
from spandial_agent.capture.follower import TlsFollower
from spandial_agent.capture.running import RunningCapture
from spandial_agent.discovery.discovery import Discovery
from spandial_agent.discovery.registrar import Registrar
from spandial_agent.dispatch import RecordDispatch
from spandial_agent.propagation.watch import PropagationWatch
from spandial_agent.steering.steering import Steering
from spandial_agent.supervised import Watched
from spandial_agent.table.lease import LeaseKeeper
from spandial_agent.table.rates import RateTable
from spandial_agent.targets.askers import Askers
from spandial_agent.targets.states import target_state, target_stats
from spandial_agent.targets.target import Target
from spandial_agent.targets.targets import Targets
from spandial_api.breaker import Circuit, Thresholds
from spandial_api.budgets import Limits
from spandial_api.node import Asker, Connection
from spandial_api.node_states import (
    BudgetUse,
    EntryEvent,
    Health,
    NodeStats,
    TargetExplanation,
    TargetState,
    TenantUse,
)
from spandial_api.rules import RuleBook
from spandial_api.selectors import Selector

__all__ = ["LocalNode"]

_log = structlog.get_logger("spandial.node")

_ALTERED_SHOWN = 16  # in a line of the log
_BEAT_S = 5.0  # at least as often, the event loop says that it lives
_SLICE = 64  # targets


class LocalNode:
    """This node. All methods run on the event loop's thread.

    Args:
        dispatch: where the kernel's records go.
        missing: one sentence for each thing that the kernel side lacks here.
        tls: what follows the TLS of targets, where there is capture.
        propagation: what looks for lost trace contexts, where that is wanted.
        thresholds: of tenants' circuits.
        log_losses: lines of the log that were lost, by reason.
        supervised: what has trouble that `/healthz` tells.
        cost_limit: what capture may cost, if there is a limit.
    """

    def __init__(
        self,
        table: RateTable,
        targets: Targets,
        registrar: Registrar,
        discovery: Discovery,
        capture: Capture | None,
        dispatch: RecordDispatch,
        missing: list[str],
        lease_s: float,
        tls: TlsFollower | None = None,
        propagation: PropagationWatch | None = None,
        thresholds: Thresholds | None = None,
        log_losses: Callable[[], Mapping[str, int]] = dict,
        supervised: Sequence[Watched] = (),
        cost_limit: CostLimit | None = None,
    ) -> None:
        self._table = table
        self._targets = targets
        self._registrar = registrar
        self._discovery = discovery
        self._capture = capture
        self._dispatch = dispatch
        self._missing = missing
        self._lease_s = lease_s
        self._lease = LeaseKeeper(table, lease_s)
        self._tls = tls
        self._propagation = propagation
        self._log_losses = log_losses
        self._supervised = supervised
        self._steering = Steering(targets, capture, self._publish, thresholds)
        targets.on_ended = self._on_ended
        if tls is not None:
            targets.on_program = lambda target: tls.follow(target.pid, target.process.start_time)
        self._askers = Askers(targets)
        self._revision = 0
        self._running = RunningCapture(capture, tls)
        self._cost_limit = cost_limit
        self._off = self._costly = ""  # why nothing is done, or nothing captured

    async def run(self) -> None:
        """Renew the lease and pass on entries until cancelled."""
        loop = asyncio.get_running_loop()
        if self._capture is not None:
            self._capture.start(lambda records: self._dispatch.hand_over(loop, records))
        looking = loop.create_task(self._propagation.run()) if self._propagation is not None else None
        self._lease.start()
        try:
            while True:
                self._beat()
                self._check_rows()
                self._targets.find_room()
                await asyncio.sleep(min(self._lease_s / 4, _BEAT_S))
        finally:
            self.close()
            if looking is not None:
                looking.cancel()

    def switch(self, off: str) -> None:
        before, self._off = self._off, off
        if off != before:
            _log.warning("the agent is switched", to="off" if off else "on", reason=off)
        if off:
            if not before:
                self._stop_capture()
            self._lease.pause()
        elif before or not self._running.running:
            self._lease.resume()
            self._beat()
            self._start_capture()
        self._waking = asyncio.ensure_future(self._registrar.publish())  # hooks look at the lease when they are asked

    async def limit_cost(self) -> None:
        """Take capture off for a while whenever it costs more than it may, until cancelled."""
        if self._cost_limit is not None:
            await keep_within(self._cost_limit, self._running, self._stop_capture, self._try_capture)

    def close(self) -> None:
        """Renew the lease no more: the table may be closed afterwards."""
        self._lease.stop()

    async def steer(self) -> None:
        """Move rates by what is counted until cancelled."""
        await self._steering.run()

    def limit(self, limits: Limits) -> None:
        self._steering.limit(limits)

    def budget_use(self) -> BudgetUse:
        return self._steering.budget_use

    def tenant_uses(self) -> list[TenantUse]:
        return self._steering.tenant_uses

    def circuits(self) -> dict[str, Circuit]:
        return self._steering.circuits

    def restore(self, circuits: Mapping[str, Circuit]) -> None:
        self._steering.restore(circuits)

    def apply(self, book: RuleBook) -> None:
        self._revision = book.revision
        self._targets.apply(book)

    def targets(self) -> list[TargetState]:
        read, limits = self._table.backend.read, self._targets.limits
        return [
            target_state(target, read(target.row.number), limits.get(target.pid), self._tls_of(target.pid))
            for target in self._targets
        ]

    def labels(self, service: str | None = None) -> Mapping[int, set[Labels]]:
        return self._targets.labels(service)

    async def asker(self, services: Sequence[str], connection: Connection, uid: int | None = None) -> Asker | None:
        return await self._askers.find(services, connection, uid)

    def rate(self, labels: Labels, kind: EntryKind, uid: int | None = None) -> float | None:
        target = self._targets.alike(labels, uid)
        rate = word_rate(self._table.backend.read(target.row.number)[kind]) if target is not None else None
        return None if rate is None else round(rate, 10)

    async def explain(self, pid: int) -> TargetExplanation:
        return await self._discovery.explain(pid)

    def reached(self) -> Mapping[Selector, int]:
        return self._targets.reached()

    def reached_by(self, selector: Selector) -> int:
        return self._targets.reached_by(selector)

    def watch(self, service: str = "*", env: str = "*") -> AbstractAsyncContextManager[AsyncIterator[EntryEvent]]:
        return self._dispatch.watchers.watch(service, env)

    def end_watches(self) -> None:
        self._dispatch.watchers.end()

    async def stats(self) -> NodeStats:
        await self._publish()
        targets = []  # first: it finds what is implausible
        for number, target in enumerate([*self._targets], 1):
            targets.append(target_stats(target, self._counted(target), comparable=self._running.running))
            if not number % _SLICE:
                await asyncio.sleep(0)  # a rule or the lease need not wait for thousands of them
        losses = {
            **self._dispatch.losses(),
            **self._log_losses(),
            "process_events": self._discovery.lost,
            "row_refused": self._table.refused,
            "row_altered": self._table.altered,
            "registration_refused": self._registrar.refused,
            "target_unwatched": self._targets.unwatched,
            "target_refused": self._targets.crowded,
            "environment_cut": self._discovery.cut,
            "asker_skipped": self._askers.skipped,
            "tls_library_refused": self._tls.refused if self._tls is not None else 0,
            "operations_refused": self._targets.operations.refused,
            "counter_implausible": self._targets.implausible,
        }
        if self._capture is not None:
            losses |= self._capture.losses()
        context_lost = self._propagation.lost() if self._propagation is not None else []
        return NodeStats(targets=targets, losses=losses, spans=self._dispatch.spans(), context_lost=context_lost)

    def health(self) -> Health:
        missing = [*filter(None, [self._off, self._costly]), *self._running.missing, *self._missing]
        if self._discovery.reason:
            missing.append(self._discovery.reason)
        if self._tls is not None and self._tls.reason:
            missing.append(self._tls.reason)
        sharing = Counter(self._targets.sharing)
        if sharing:
            uid, most = sharing.most_common(1)[0]
            missing.append(
                f"the rate table is full: {sharing.total()} processes share the node's default rate, {most} of them of "
                f"user {uid} (there are {abi.ROWS - 2} rows, and what is free is for other users)."
            )
        if self._table.altered:
            missing.append(
                f"somebody else wrote into the rate table: {self._table.altered} rows were not as the agent had "
                "written them, and were written anew. Look for a process with rights of root's that should have none."
            )
        missing += self._targets.operations.missing
        missing += [part.trouble for part in self._supervised if part.trouble]
        return Health(
            status="degraded" if missing else "ok",
            version=version("spandial"),
            table="bpf" if self._table.backend.name == "bpf" else "memfd",
            capture=self._capture.path if self._capture is not None and self._running.running else "off",
            discovery=self._discovery.how,
            missing=missing,
            targets=len(self._targets),
            free_rows=self._table.free_rows,
            refused_rows=self._table.refused,
            lease_seconds=self._lease_s,
            revision=self._revision,
        )

    def _stop_capture(self, costly: str = "") -> None:
        self._costly = costly
        self._running.stop()
        self._steering.paused = True

    def _start_capture(self) -> None:
        self._costly = ""
        self._running.start()
        self._steering.paused = not self._running.running
        self._registrar.send_all_away()  # meanwhile they counted and the kernel did not
        self._dispatch.forget()

    def _try_capture(self) -> None:
        if not self._off:
            self._start_capture()

    def _beat(self) -> None:
        if self._lease.beat():
            self._targets.lease_ended()

    async def _publish(self, targets: Collection[Target] | None = None) -> None:
        """Whether the lease had ended is known before hooks tell what they decided since."""
        self._beat()
        await self._registrar.publish(targets)

    def _check_rows(self) -> None:
        if altered := self._table.check():
            _log.error("somebody else wrote into the rate table; it is written anew", altered=altered[:_ALTERED_SHOWN])

    def _tls_of(self, pid: int) -> str:
        if self._tls is not None:
            return self._tls.words(pid)
        return f"not seen: {'kernel capture is off' if self._capture is None else 'SPANDIAL_CAPTURE_TLS=off'}"

    def _counted(self, target: Target) -> Counts | None:
        """What the kernel counted in a row that is the target's own."""
        if self._capture is None or not target.counts_alone:
            return None
        return self._capture.counts(target.row.number)

    def _on_ended(self, target: Target) -> None:
        if self._tls is not None:
            self._tls.forget(target.pid)
        self._dispatch.ended(target)
