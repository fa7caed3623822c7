"""From records of processes without a hook to exported spans, in a thread of its own: the event loop never waits."""

from __future__ import annotations

import threading
import time
from collections import deque

import structlog

from spandial.abi import Event
from spandial_agent.records.conversations import Call
from spandial_agent.records.protocols.http2 import Response
from spandial_agent.records.record import Entry
from spandial_agent.spans.clock import Clock, read_clocks
from spandial_agent.spans.exchanges import Exchanges, Peer
from spandial_agent.spans.export import Exporter
from spandial_agent.spans.record import Exchange
from spandial_agent.spans.resource import Resources
from spandial_agent.supervised import Supervised
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

_QUEUE = 65_536  # records
_LOOK_S = 0.05
_SWEEP_S = 0.25
_CLOCK_S = 1.0
_STILL_S = 60.0
_END_S = 0.2  # for the records that are there at the end
_LATE_NS = 500_000_000  # a process's records come no later than that after its end


class SpanPipeline:
    """Pairs, describes and exports. `take` and `exited` may be called from any one thread, and never wait.

    Args:
        raw_statements: spans hold database operations as they were received, not as they are without their data.
    """

    def __init__(self, exporter: Exporter, resources: Resources, raw_statements: bool = False) -> None:
        self._exporter = exporter
        self._resources = resources
        self._raw_statements = raw_statements
        self._clock = Clock(read_clocks())
        self._exchanges = Exchanges(self._export)
        self._queue: deque[tuple[Entry, Call | Response | None, Peer]] = deque()
        self._exits: deque[tuple[int, int]] = deque()
        self._kept = 0  # entries and calls that were handed over
        self._lost = self._answers_lost = 0
        self._begun = self._not_made = 0
        self._stop = threading.Event()
        self._thread = Supervised("spandial-spans", "pairing of requests and answers", self._run, still_s=_STILL_S)
        self.supervised = (self._thread, exporter.thread)
        self._thread.start()

    def take(self, entry: Entry, said: Call | Response | None, process: Peer) -> None:
        is_call = entry.event == Event.ENTRY and isinstance(said, Call)
        self._kept += is_call
        if len(self._queue) >= _QUEUE:
            self._drop(is_call)
            return
        self._queue.append((entry, said, process))

    def exited(self, pid: int) -> None:
        """A process has ended. Records of what it did before may still come."""
        self._exits.append((pid, _boottime_ns()))

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
            "spans_lost_at_end": self._exporter.lost_before,
        }

    def spans(self) -> SpanStats:
        """What became of the entries and calls that were handed over. Their numbers are read one after the other."""
        counts, losses = self._exporter.counts(), self.losses()
        return SpanStats(
            kept=self._kept,
            exported=counts.exported,
            queued=self._kept - self._lost - self._begun + len(self._exchanges) + counts.queued,
            lost={reason: losses[reason] for reason in _SPANS_LOST} | {"spans_unsent": counts.unsent},
        )

    def close(self) -> None:
        """Export what is there, as far as that takes a moment; what is not exported then is told."""
        self._stop.set()
        self._thread.join()
        self._exporter.close()

    def _run(self) -> None:
        next_sweep = next_clock = time.monotonic()
        while not self._stop.wait(_LOOK_S):
            self._thread.beat()
            self._drain()
            self._end_exited(_boottime_ns() - _LATE_NS)
            now = time.monotonic()
            if now >= next_sweep:
                next_sweep = now + _SWEEP_S
                self._exchanges.sweep(_boottime_ns())
            if now >= next_clock:
                next_clock = now + _CLOCK_S
                self._clock.update(read_clocks())
        self._drain(until=time.monotonic() + _END_S)
        self._end_exited(_boottime_ns())
        self._exchanges.finish_all(_boottime_ns())

    def _drain(self, until: float | None = None) -> None:
        while self._queue:
            entry, said, process = self._queue.popleft()
            is_call = entry.event == Event.ENTRY and isinstance(said, Call)
            if until is not None and time.monotonic() > until:
                self._drop(is_call)
                continue
            self._begun += is_call
            if self._raw_statements and isinstance(said, Call):
                said = said._replace(operation=said.operation._replace(text=said.operation.raw))
            try:
                begun = self._exchanges.take(entry, said, process)
                self._not_made += not begun
            except Exception as error:  # what one process sent takes no other's spans away
                self._not_made += is_call
                _log.warning("a record made no span", exc_info=error)

    def _drop(self, is_call: bool) -> None:
        if is_call:
            self._lost += 1
        else:
            self._answers_lost += 1

    def _end_exited(self, until_ns: int) -> None:
        while self._exits and self._exits[0][1] <= until_ns:
            self._exchanges.exited(*self._exits.popleft())

    def _export(self, exchange: Exchange, process: Peer) -> None:
        try:
            start, end = self._clock.unix_ns(exchange.start_ns, exchange.end_ns)
            resource = self._resources.of(process.pid, process.start_time, process.labels)
            self._exporter.offer(exchange._replace(start_ns=start, end_ns=end), resource)
        except Exception as error:  # what one process is called ends nobody's spans
            self._not_made += 1
            _log.warning("an exchange made no span", exc_info=error)


def _boottime_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
