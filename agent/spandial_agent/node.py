"""The node: table, targets and capture as the control plane sees them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from importlib.metadata import version
from typing import Any

from spandial import abi
from spandial.abi import EntryKind, Event, Protocol, word_rate
from spandial.labels import Labels
from spandial_agent.capture.capture import Capture
from spandial_agent.capture.counts import Counts
from spandial_agent.capture.follower import TlsFollower
from spandial_agent.discovery.discovery import Discovery
from spandial_agent.discovery.registrar import Registrar
from spandial_agent.processes.asker import asker
from spandial_agent.propagation.watch import PropagationWatch
from spandial_agent.records.conversations import Call, Conversations
from spandial_agent.records.record import decode_entry
from spandial_agent.records.watchers import Watchers
from spandial_agent.spans.exchanges import Peer
from spandial_agent.spans.pipeline import SpanPipeline
from spandial_agent.steering.steering import Steering
from spandial_agent.table.rates import RateTable
from spandial_agent.targets.states import KIND_NAMES, target_state, target_stats
from spandial_agent.targets.target import REGISTERED, Target
from spandial_agent.targets.targets import Targets
from spandial_api.breaker import Circuit, Thresholds
from spandial_api.budgets import Limits
from spandial_api.node import Connection
from spandial_api.node_states import (
    BudgetUse,
    EntryEvent,
    Health,
    NodeStats,
    ProtocolName,
    TargetExplanation,
    TargetState,
    TenantUse,
)
from spandial_api.rules import RuleBook
from spandial_api.selectors import Selector

__all__ = ["LocalNode"]

_PROTOCOL_NAMES: dict[Protocol, ProtocolName] = {
    Protocol.HTTP1: "http/1",
    Protocol.HTTP2: "http/2",
    Protocol.POSTGRES: "postgresql",
    Protocol.MYSQL: "mysql",
    Protocol.REDIS: "redis",
}
_ASKERS = 256  # processes of which one may be asking
_ENDED = 1024  # processes
_BACKLOG = 65_536  # records that the event loop may be behind


class LocalNode:
    """This node. All methods run on the event loop's thread.

    Args:
        missing: one sentence for each thing that the kernel side lacks here.
        spans: what makes spans of the entries of processes without a hook, if they are exported.
        tls: what follows the TLS of targets, where there is capture.
        propagation: what looks for lost trace contexts, where that is wanted.
        thresholds: of tenants' circuits.
    """

    def __init__(
        self,
        table: RateTable,
        targets: Targets,
        registrar: Registrar,
        discovery: Discovery,
        capture: Capture | None,
        missing: list[str],
        lease_s: float,
        spans: SpanPipeline | None = None,
        tls: TlsFollower | None = None,
        propagation: PropagationWatch | None = None,
        thresholds: Thresholds | None = None,
    ) -> None:
        self._table = table
        self._targets = targets
        self._registrar = registrar
        self._discovery = discovery
        self._capture = capture
        self._missing = missing
        self._lease_s = lease_s
        self._watchers = Watchers(targets.rewrite)
        self._spans = spans
        self._tls = tls
        self._propagation = propagation
        self._steering = Steering(targets, capture, registrar.publish, thresholds)
        # Processes whose last records may still come; None for those with a hook.
        self._ended: dict[int, Peer | None] = {}
        self._nobodys = 0  # records of processes that ended longer ago
        targets.emit = self._wants_entries
        targets.answers = spans is not None
        targets.on_ended = self._on_ended
        if tls is not None:
            targets.on_program = lambda target: tls.follow(target.pid)
        self._revision = 0
        # Each is written by one thread only: by the ring buffer's, by the loop's.
        self._handed_over = 0
        self._taken = 0
        self._lost_records = 0
        self._bad_records = 0
        self._conversations = Conversations(self._operation_word)
        self._forgotten = 0  # records whose loss the conversations have taken into account
        # CLOCK_BOOTTIME to Unix time.
        self._epoch_s = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)

    async def run(self) -> None:
        """Renew the lease and pass on entries until cancelled."""
        loop = asyncio.get_running_loop()
        if self._capture is not None:
            self._capture.start(lambda records: self._hand_over(loop, records))
        looking = loop.create_task(self._propagation.run()) if self._propagation is not None else None
        try:
            while True:
                if self._table.renew_lease(self._lease_s):
                    self._targets.lease_ended()
                self._targets.find_room()
                await asyncio.sleep(self._lease_s / 4)
        finally:
            if looking is not None:
                looking.cancel()

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

    def labels(self, service: str | None = None) -> set[Labels]:
        return self._targets.labels(service)

    async def asker(self, services: Sequence[str], connection: Connection) -> Labels | None:
        pids = [pid for service in services for pid in self._targets.of_service(service)][:_ASKERS]
        pid = await asyncio.to_thread(asker, pids, *connection)
        target = self._targets.get(pid) if pid is not None else None
        return target.labels if target is not None else None

    def rate(self, labels: Labels, kind: EntryKind) -> float | None:
        target = self._targets.alike(labels)
        rate = word_rate(self._table.backend.read(target.row.number)[kind]) if target is not None else None
        return None if rate is None else round(rate, 10)

    async def explain(self, pid: int) -> TargetExplanation:
        return await self._discovery.explain(pid)

    def reached(self) -> Mapping[Selector, int]:
        return self._targets.reached()

    def reached_by(self, selector: Selector) -> int:
        return self._targets.reached_by(selector)

    def watch(self, service: str = "*", env: str = "*") -> AbstractAsyncContextManager[AsyncIterator[EntryEvent]]:
        return self._watchers.watch(service, env)

    def end_watches(self) -> None:
        self._watchers.end()

    async def stats(self) -> NodeStats:
        await self._registrar.publish()
        targets = [
            target_stats(target, self._counted(target)) for target in self._targets
        ]  # first: it finds what is implausible
        losses = {
            "watcher_slow": self._watchers.lost,
            "agent_slow": self._lost_records,
            "bad_record": self._bad_records,
            "process_events": self._discovery.lost,
            "row_refused": self._table.refused,
            "registration_refused": self._registrar.refused,
            "target_unwatched": self._targets.unwatched,
            "operations_refused": self._targets.operations.refused,
            "counter_implausible": self._targets.implausible,
        }
        if self._capture is not None:
            losses |= self._capture.losses()
        if self._spans is not None:
            losses |= {"span_process_unknown": self._nobodys, **self._spans.losses()}
        context_lost = self._propagation.lost() if self._propagation is not None else []
        return NodeStats(targets=targets, losses=losses, context_lost=context_lost)

    def health(self) -> Health:
        missing = [*self._missing]
        if self._discovery.reason:
            missing.append(self._discovery.reason)
        if self._tls is not None and self._tls.reason:
            missing.append(self._tls.reason)
        if self._table.refused:
            missing.append(
                f"the rate table is full: {self._table.refused} processes share the node's default rate "
                f"(there are {abi.ROWS - 2} rows)."
            )
        missing += self._targets.operations.missing
        return Health(
            status="degraded" if missing else "ok",
            version=version("spandial"),
            table="bpf" if self._table.backend.name == "bpf" else "memfd",
            capture=self._capture.path if self._capture is not None else "off",
            discovery=self._discovery.how,
            missing=missing,
            targets=len(self._targets),
            free_rows=self._table.free_rows,
            refused_rows=self._table.refused,
            lease_seconds=self._lease_s,
            revision=self._revision,
        )

    def _tls_of(self, pid: int) -> str:
        if self._tls is not None:
            return self._tls.words(pid)
        return f"not seen: {'kernel capture is off' if self._capture is None else 'SPANDIAL_CAPTURE_TLS=off'}"

    def _counted(self, target: Target) -> Counts | None:
        """What the kernel counted in a row that is the target's own."""
        if self._capture is None or not target.counts_alone:
            return None
        return self._capture.counts(target.row.number)

    def _wants_entries(self, labels: Labels, hooked: bool) -> bool:
        return self._watchers.wants(labels) or (self._spans is not None and not hooked)

    def _on_ended(self, target: Target) -> None:
        if self._tls is not None:
            self._tls.forget(target.pid)
        if self._spans is None:
            return
        process = _peer(target)
        if process is not None:
            self._spans.exited(target.pid)
        self._ended[target.pid] = process
        if len(self._ended) > _ENDED:
            del self._ended[next(iter(self._ended))]

    def _operation_word(self, row: int, kind: EntryKind, method: str, path: str) -> int | None:
        """What a rule by operation says to a process with this row."""
        if self._capture is None:
            return None
        operation_set = self._table.backend.read(row)[abi.WORD_OPERATIONS] >> 32
        rule = self._capture.find_operation(operation_set, kind, method, path)
        return self._table.backend.read(rule)[kind] if rule is not None else None

    def _hand_over(self, loop: asyncio.AbstractEventLoop, records: list[bytes]) -> None:
        """From the ring buffer's thread to the event loop."""
        if self._handed_over - self._taken >= _BACKLOG:
            self._lost_records += len(records)
            return
        self._handed_over += len(records)
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(self._offer, records)

    def _offer(self, records: list[bytes]) -> None:
        self._taken += len(records)
        if self._lost_records != self._forgotten:
            self._forgotten = self._lost_records
            self._conversations.forget()
        for record in records:
            try:
                entry = decode_entry(record)
            except ValueError:
                self._bad_records += 1
                continue
            if self._propagation is not None:
                self._propagation.take(entry)
            if entry.event == Event.EXAMPLE:
                continue
            target = self._targets.get(entry.tgid)
            said = self._conversations.read(entry)
            if self._spans is not None:
                process = _peer(target) if target is not None else self._ended.get(entry.tgid)
                if process is not None:
                    self._spans.take(entry, said, process)
                elif target is None and entry.tgid not in self._ended:
                    self._nobodys += 1
            if not isinstance(said, Call) or not entry.entered or not self._watchers:
                continue
            labels: dict[str, Any] = {**(target.labels if target else Labels()).main}
            self._watchers.offer(
                EntryEvent.model_construct(
                    time=self._epoch_s + entry.time_ns / 1e9,
                    pid=entry.tgid,
                    **labels,
                    kind=KIND_NAMES[entry.kind],
                    protocol=_PROTOCOL_NAMES[said.protocol],
                    method=said.method,
                    path=said.path,
                    operation=said.operation.name,
                    statement=said.operation.text,
                    trace_id=f"{said.trace_id:032x}" if said.trace_id else "",
                    parent_span_id=f"{said.span_id:016x}" if said.span_id else "",
                    kept_by=said.kept_by,
                    lost=0,
                )
            )


def _peer(target: Target) -> Peer | None:
    """The process whose spans the agent makes; None for one with a hook, which makes its own."""
    if target.why == REGISTERED:
        return None
    return Peer(target.pid, target.process.start_time, target.labels)
