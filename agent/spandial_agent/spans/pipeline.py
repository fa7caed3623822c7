"""From records of processes without a hook to exported spans, in a thread of its own: the event loop never waits."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping

import structlog

from spandial.abi import Event
from spandial_agent.clock import KernelClock
from spandial_agent.processes.backlog import Backlog
from spandial_agent.processes.crowd import Crowded
from spandial_agent.records.conversations import Call
from spandial_agent.records.protocols.http2 import Response
from spandial_agent.records.record import Entry
from spandial_agent.spans.exchanges import Exchanges, Peer
from spandial_agent.spans.export import Exporter
from spandial_agent.spans.ledger import Ledger
from spandial_agent.spans.record import Exchange
from spandial_agent.spans.resource import Resources
from spandial_agent.supervised import Supervised, Watched
from spandial_api.node_states import SpanStats

__all__ = ["SpanPipeline"]

_log = structlog.get_logger("spandial.spans")

_SPANS_LOST = (
    "span_records_dropped",
    "spans_not_made",
    "spans_without_room",
    "spans_queue_full",
    "spans_export_failed",
    "spans_rejected",
)

_Record = tuple[Entry, Call | Response | None, Peer, bool]  # whether it is a kept entry or call

_QUEUE = 65_536  # records
_PIECE = 64  # records that are taken out together
_LOOK_S = 0.05
_SWEEP_S = 0.25
_STILL_S = 60.0
_PAIRING_S = 0.2  # for the records that are there at the end
_END_S = 0.7  # from where nobody can ask any more what was lost
_FLUSH_S = (0.2, 0.5)  # of those: at least, and at most
_LATE_NS = 500_000_000  # a process's records come no later than that after its end


class SpanPipeline:
    """Pairs, describes and exports. `take` and `exited` may be called from any one thread, and never wait.

    Args:
        raw_statements: spans hold database operations as they were received, not as they are without their data.
        ledger: keeps over a restart what was lost at the end.
        clock: of the records.

    Attributes:
        coming: how many entries and calls are on their way to `take`.
        lost_coming: how many were lost on that way, by reason.
    """

    def __init__(
        self,
        exporter: Exporter,
        resources: Resources,
        raw_statements: bool = False,
        ledger: Ledger | None = None,
        clock: KernelClock | None = None,
    ) -> None:
        self.coming: Callable[[], int] = lambda: 0
        self.lost_coming: Callable[[], Mapping[str, int]] = dict
        self._exporter = exporter
        self._resources = resources
        self._raw_statements = raw_statements
        self._clock = clock or KernelClock()
        self._exchanges = Exchanges(self._export)
        crowded = Crowded("records that waited to be paired", _QUEUE)
        self._queue: Backlog[_Record, tuple[_Record]] = Backlog(_QUEUE, lambda record: record[2].uid, crowded)
        self._exits: deque[tuple[int, int]] = deque()
        self._ledger = ledger
        self._kept = 0  # entries and calls that were handed over
        self._given_up = 0  # of those, without a look
        self._told: int | None = None  # spans that were lost while somebody could ask
        self._ends_at = 0.0
        self._lost = self._answers_lost = 0
        self._begun = self._not_made = 0
        self._stop = threading.Event()
        self._thread = Supervised("spandial-spans", "pairing of requests and answers", self._run, still_s=_STILL_S)
        self.supervised: list[Watched] = [self._thread, exporter.thread, exporter]
        self.supervised += [crowded, self._exchanges.crowded, self._exchanges.unanswered, exporter.crowded]
        self._thread.start()
        if ledger is not None:
            self.supervised.append(ledger.thread)
            ledger.keep(self.held)

    def take(self, entry: Entry, said: Call | Response | None, process: Peer) -> None:
        is_call = entry.event == Event.ENTRY and isinstance(said, Call)
        self._kept += is_call
        if not self._queue.offer(((entry, said, process, is_call),)):
            self._drop(is_call)

    def exited(self, pid: int) -> None:
        """A process has ended. Records of what it did before may still come."""
        self._exits.append((pid, self._clock.now_ns()))

    def losses(self) -> dict[str, int]:
        """Spans that were lost, by reason."""
        counts = self._exporter.counts()
        return {
            "span_records_dropped": self._lost,
            "span_answers_dropped": self._answers_lost,
            "spans_not_made": self._not_made,
            "spans_without_room": self._exchanges.lost,
            "spans_queue_full": counts.dropped_queue_full,
            "spans_export_failed": counts.export_failed,
            "spans_rejected": counts.rejected,
            "spans_lost_at_end": self._ledger.before if self._ledger is not None else 0,
            "agents_killed": self._ledger.killed if self._ledger is not None else 0,
        }

    def spans(self) -> SpanStats:
        """What became of the entries and calls that were handed over. Their numbers are read one after the other."""
        counts, losses, before = self._exporter.counts(), self.losses(), self.lost_coming()
        lost = {reason: losses[reason] for reason in _SPANS_LOST}
        return SpanStats(
            kept=self._kept + sum(before.values()),
            exported=counts.exported,
            queued=self._unpaired() + counts.queued,
            lost={**lost, "spans_unsent": counts.unsent + self._given_up, **before},
        )

    def held(self) -> int:
        """Entries and calls of which no span has gone out, and which are not lost yet. One that moves on meanwhile may
        be in here twice."""
        return self.coming() + self._unpaired() + self._exporter.counts().queued

    def shed(self) -> None:
        """Lose the spans that wait for the collector: for the memory."""
        self._exporter.shed()

    def come(self) -> None:
        """More is on its way to `take`: whatever happens now, it is known that it came."""
        if self._ledger is not None:
            self._ledger.note_soon()

    def give_up(self, count: int) -> None:
        """So many entries and calls came too late to be looked at."""
        self._kept += count
        self._given_up += count

    def ending(self) -> None:
        """Nobody can ask any more what was lost: the next agent tells what is lost from now on."""
        self._told = sum(self.spans().lost.values())
        self._ends_at = time.monotonic() + _END_S

    def close(self) -> None:
        """Export what is there, as far as that takes a moment; what is not exported then is told."""
        if self._stop.is_set():
            return
        if self._told is None:
            self.ending()
        self._stop.set()
        least, most = _FLUSH_S
        self._thread.join(max(self._ends_at - time.monotonic() - least, least))
        self._exporter.close(min(max(self._ends_at - time.monotonic(), least), most))
        self._tell_end(self._told or 0)

    def _tell_end(self, told: int) -> None:
        spans = self.spans()
        lost = {reason: count for reason, count in spans.lost.items() if count}
        at_end = spans.queued + sum(lost.values()) - told
        if self._ledger is not None:
            self._ledger.close(at_end)
        _log.info("the account of spans", kept=spans.kept, exported=spans.exported, lost=lost)
        if at_end:
            _log.warning("spans were lost at the end", spans=at_end)

    def _unpaired(self) -> int:
        """Entries and calls whose answers have not come, those included that nobody has looked at yet."""
        return self._kept - self._given_up - self._lost - self._begun + len(self._exchanges)

    def _run(self) -> None:
        next_sweep = time.monotonic()
        while not self._stop.wait(_LOOK_S):
            self._thread.beat()
            self._drain()
            self._end_exited(self._clock.now_ns() - _LATE_NS)
            now = time.monotonic()
            if now >= next_sweep:
                next_sweep = now + _SWEEP_S
                self._exchanges.sweep(self._clock.now_ns())
            self._clock.look()
        self._drain(until=time.monotonic() + _PAIRING_S)
        self._end_exited(self._clock.now_ns())
        self._exchanges.finish_all(self._clock.now_ns())

    def _drain(self, until: float | None = None) -> None:
        while records := self._queue.take_some(_PIECE):
            for ((entry, said, process, is_call),) in records:
                if until is not None and time.monotonic() > until:
                    self._drop(is_call)
                    continue
                self._begun += is_call
                try:
                    if self._raw_statements and isinstance(said, Call):
                        said = said._replace(operation=said.operation._replace(text=said.operation.raw))
                    if not self._exchanges.take(entry, said, process):
                        self._not_made += 1
                except Exception as error:  # what one process sent takes no other's spans away
                    self._not_made += is_call
                    _log.warning("a record made no span", exc_info=error)

    def _drop(self, is_call: bool) -> None:
        if is_call:
            self._lost += 1
        else:
            self._answers_lost += 1

    def _end_exited(self, until_ns: int) -> None:
        ended: dict[int, int] = {}
        while self._exits and self._exits[0][1] <= until_ns:
            pid, at_ns = self._exits.popleft()
            ended[pid] = at_ns
        if ended:
            self._exchanges.exited(ended)

    def _export(self, exchange: Exchange, process: Peer) -> None:
        try:
            start, end = self._clock.unix_ns(exchange.start_ns, exchange.end_ns)
            resource = self._resources.of(process.pid, process.start_time, process.labels, process.uid)
            self._exporter.offer(exchange._replace(start_ns=start, end_ns=end), resource, process.uid)
        except Exception as error:  # what one process is called ends nobody's spans
            self._not_made += 1
            _log.warning("an exchange made no span", exc_info=error)
