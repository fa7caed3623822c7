"""Look for pairs of targets between which trace contexts are lost: a proxy strips `traceparent`.

Most of the time this compares numbers: a target that sends requests with a trace context, another that receives some
without. Where there are both it has the kernel hand over their requests for a moment, and looks whether one's come to
the other. Through which proxy, or how many, does not matter, and neither does whether it runs on this node.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import structlog

from spandial import abi
from spandial.abi import EntryKind, Event, Protocol, RecordFlag
from spandial_agent.capture.capture import Capture
from spandial_agent.clock import KernelClock
from spandial_agent.propagation.examples import Evidence, Example, weigh
from spandial_agent.records.protocols.http1 import parse_request_line
from spandial_agent.records.record import Entry
from spandial_agent.records.redaction import PathRedaction, redact_path
from spandial_agent.table.rates import RateTable
from spandial_agent.targets.target import Target
from spandial_agent.targets.targets import Targets
from spandial_api.node_states import LostContext, LostExample, TargetName

__all__ = ["PropagationWatch"]

_ENOUGH = 10  # requests between two looks, before anybody is looked at
_AT_ONCE = 8  # clients, and servers: of more, some are drawn each time
_EXAMPLES_S = 5.0  # how long examples are collected
_EXAMPLES_MAX = 1_000  # of each target
_STEP_S = 0.1
_CHANCE = 1e-9  # what is likelier than that to be chance is not told
_REST = 16  # looks that are left out at most, where the last ones found nothing
_PAIRS_MAX = 256

_log = structlog.get_logger("spandial.propagation")


class _Traffic(NamedTuple):
    """HTTP requests: sent with a trace context, received with one, received without."""

    sent: int
    traced: int
    untraced: int

    def since(self, earlier: _Traffic) -> _Traffic:
        return _Traffic(*(now - then for now, then in zip(self, earlier)))


_NONE = _Traffic(0, 0, 0)


@dataclass
class _Pair:
    since: float
    example: LostExample
    count: int = 0


class PropagationWatch:
    """All methods run on the event loop's thread.

    Args:
        interval_s: from one look to the next.
        redact_paths: before they are told.
        clock: of the kernel's records.
    """

    def __init__(
        self,
        targets: Targets,
        table: RateTable,
        capture: Capture,
        interval_s: float,
        redact_paths: PathRedaction = "off",
        clock: KernelClock | None = None,
    ) -> None:
        self._targets = targets
        self._table = table
        self._capture = capture
        self._interval_s = interval_s
        self._redact_paths = redact_paths
        self._clock = clock or KernelClock()
        self._before: dict[int, tuple[int, _Traffic]] = {}  # by pid, with the epoch of the row
        self._suspects: tuple[set[int], set[int]] = set(), set()
        self._rest = self._left_out = 0
        self._pairs: dict[tuple[int, int], _Pair] = {}  # by the pids of client and server
        self._examples: dict[int, list[Example]] = {}  # of those who are asked for some now

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self.look()
            except Exception as error:  # the next look may go well, and nothing else depends on this one
                _log.warning("lost trace contexts could not be looked for", error=f"{type(error).__name__}: {error}")

    async def look(self) -> None:
        """Compare what came and went since the last time, and follow up what is suspicious."""
        traffic = self._traffic()
        suspects = (
            {pid for pid, passed in traffic.items() if passed.sent >= _ENOUGH},
            {pid for pid, passed in traffic.items() if passed.untraced >= _ENOUGH},
        )
        if suspects != self._suspects:
            self._suspects, self._rest = suspects, 0
        if not all(suspects) or self._is_resting():
            return
        clients, servers = (random.sample(sorted(pids), min(_AT_ONCE, len(pids))) for pids in suspects)
        pairs = [(client, server) for client in clients for server in servers if client != server]
        for (client, server), evidence in (await self._evidence(pairs)).items():
            self._judge(client, server, evidence, min(traffic[client].sent, traffic[server].untraced))
        self._rest = 0 if self._pairs else min(2 * self._rest + 1, _REST)

    def take(self, entry: Entry) -> None:
        """A record of the kernel's, of any target."""
        examples = self._examples.get(entry.tgid)
        if examples is None or entry.protocol != Protocol.HTTP1 or entry.event not in (Event.ENTRY, Event.EXAMPLE):
            return
        if len(examples) == _EXAMPLES_MAX:  # what was on its way
            return
        sent = bool(entry.flags & RecordFlag.SENT)
        examples.append(Example(sent, entry.time_ns, *parse_request_line(entry.request), entry.trace_id))
        if len(examples) == _EXAMPLES_MAX:
            self._want_examples([entry.tgid], False)

    def lost(self) -> list[LostContext]:
        """The pairs of targets between which contexts are lost, those with the most requests first."""
        found = []
        for (client_pid, server_pid), pair in self._pairs.items():
            client, server = self._targets.get(client_pid), self._targets.get(server_pid)
            if client is not None and server is not None:
                names = {"client": _name(client), "server": _name(server)}
                found.append(LostContext(**names, count=pair.count, since=pair.since, example=pair.example))
        return sorted(found, key=lambda pair: -pair.count)

    def _traffic(self) -> dict[int, _Traffic]:
        """Each target's, since the last time."""
        now = {target.pid: (target.row.epoch, self._count(target)) for target in self._targets if _is_counted(target)}
        passed = {}
        for pid, (epoch, count) in now.items():
            before_epoch, before = self._before.get(pid, (0, _NONE))
            passed[pid] = count.since(before) if before_epoch == epoch else count
        self._before = now
        self._pairs = {pids: pair for pids, pair in self._pairs.items() if set(pids) <= now.keys()}
        return passed

    def _count(self, target: Target) -> _Traffic:
        counts, http = self._capture.counts(target.row.number), EntryKind.HTTP
        traced = counts.seen_traced[http]
        return _Traffic(counts.reverse_traced[http], traced, counts.seen[http] - traced)

    def _is_resting(self) -> bool:
        self._left_out += 1
        if self._left_out <= self._rest:
            return True
        self._left_out = 0
        return False

    async def _evidence(self, pairs: list[tuple[int, int]]) -> dict[tuple[int, int], Evidence]:
        """Have the kernel hand over requests of both ends, and compare them."""
        targets = {pid: self._targets.get(pid) for pair in pairs for pid in pair}
        before = {pid: self._count(target) for pid, target in targets.items() if target is not None}
        examples: dict[int, list[Example]] = {pid: [] for pid in before}
        begin_ns = self._clock.now_ns()
        self._examples = examples
        self._want_examples(examples, True)
        for _ in range(int(min(_EXAMPLES_S, self._interval_s) / _STEP_S)):
            await asyncio.sleep(_STEP_S)
            if all(len(some) == _EXAMPLES_MAX for some in examples.values()):
                break
        self._want_examples(examples, False)
        self._examples = {}
        end_ns = self._clock.now_ns()
        complete_ns = {
            pid: some[-1].time_ns if len(some) == _EXAMPLES_MAX else end_ns for pid, some in examples.items()
        }
        none_traced = {
            pid: self._count(target).traced == before[pid].traced
            for pid in examples
            if (target := self._targets.get(pid)) is not None and target is targets[pid]
        }

        def weigh_all() -> dict[tuple[int, int], Evidence]:
            return {
                (client, server): weigh(
                    examples[client],
                    examples[server],
                    begin_ns,
                    min(complete_ns[client], complete_ns[server]),
                    none_traced=none_traced[server],
                )
                for client, server in pairs
                if {client, server} <= none_traced.keys()
            }

        return await asyncio.to_thread(weigh_all)

    def _want_examples(self, pids: Iterable[int], wanted: bool) -> None:
        for pid in pids:
            target = self._targets.get(pid)
            if target is not None:
                self._table.want_examples(target.row, wanted)

    def _judge(self, client: int, server: int, evidence: Evidence, count: int) -> None:
        pair = self._pairs.get((client, server))
        if evidence.arrived:
            self._pairs.pop((client, server), None)
        elif (call := evidence.lost) is not None and evidence.chance <= _CHANCE:
            example = LostExample(
                time=self._clock.unix_s(call.time_ns),
                method=call.method,
                path=redact_path(call.path, self._redact_paths),
                trace_id=f"{call.trace_id:032x}",
            )
            if pair is None:
                if len(self._pairs) >= _PAIRS_MAX:
                    return
                pair = self._pairs[client, server] = _Pair(time.time(), example)
                _log.warning("trace contexts are lost", client=client, server=server, path=example.path)
            pair.example = example
            pair.count += count


def _is_counted(target: Target) -> bool:
    return target.watched and target.row.number != abi.DEFAULT_ROW


def _name(target: Target) -> TargetName:
    return TargetName(pid=target.pid, **target.labels.main)
