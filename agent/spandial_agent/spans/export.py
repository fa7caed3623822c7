"""Exchanges to any OTLP endpoint as spans, through the exporters of OpenTelemetry's SDK."""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags, TraceState

from spandial_agent.processes.crowd import Crowded
from spandial_agent.processes.shared_queue import SharedQueue
from spandial_agent.spans.conventions import SCHEMA_URL, describe
from spandial_agent.spans.otlp import Outcome, exporter_from_environ
from spandial_agent.spans.record import Exchange
from spandial_agent.supervised import Supervised
from spandial_agent.text import text_of

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

__all__ = ["ExportCounts", "Exporter", "span_of"]

_log = structlog.get_logger("spandial.export")

_QUEUE = 20_000  # spans
_BATCH = 512  # spans; OTEL_BSP_MAX_EXPORT_BATCH_SIZE's default
_DELAY_S = 1.0  # a span waits no longer for its batch to fill
_STILL_S = 300.0  # one request to the collector may take OTEL_EXPORTER_OTLP_TIMEOUT
_PAUSE_S = 1.0  # after a batch that was not taken; doubled each time that it is not
_PAUSE_MAX_S = 10.0
_HALVINGS = 20  # of batches that are refused, until something is taken again: two spans are found in 512 by 18
_FLUSH_S = 0.5  # at the end
_SHUTDOWN_S = 0.2
_TOLD_EVERY_S = 60.0  # while no spans are exported, in the log

_SCOPE = InstrumentationScope("spandial", version("spandial"), SCHEMA_URL)
_UNSET = Status(StatusCode.UNSET)
_NO_STATE = TraceState()

_SDK = logging.getLogger("opentelemetry.exporter.otlp")
_SDK_TRACE_STATE = logging.getLogger("opentelemetry.trace.span")


def span_of(exchange: Exchange, resource: Resource) -> ReadableSpan:
    """The span that an exchange is."""
    description = describe(exchange)
    flags = TraceFlags(exchange.trace_flags)
    state = _trace_state(exchange.trace_state) if exchange.trace_state else _NO_STATE
    parent = None
    if exchange.parent_span_id:  # the one that a server was called with is its caller's
        parent = SpanContext(exchange.trace_id, exchange.parent_span_id, exchange.server, flags, state)
    return ReadableSpan(
        description.name,
        SpanContext(exchange.trace_id, exchange.span_id, False, flags, state),
        parent,
        resource,
        description.attributes,
        kind=description.kind,
        status=_UNSET if description.status is StatusCode.UNSET else Status(description.status, description.message),
        start_time=exchange.start_ns,
        end_time=exchange.end_ns,
        instrumentation_scope=_SCOPE,
    )


@lru_cache(1024)
def _trace_state(header: str) -> TraceState:
    return TraceState.from_header([header])


class ExportCounts(NamedTuple):
    """Spans since the start. Each one offered is in exactly one of these."""

    queued: int  # now: waiting, or on their way
    exported: int
    dropped_queue_full: int
    export_failed: int  # the endpoint refused them, or they could not be encoded
    rejected: int = 0  # of batches that the endpoint took (OTLP, "Partial Success")
    unsent: int = 0  # when the exporter was closed


class _Said(logging.Handler):
    """Keeps what the SDK logs, to be said once where it would say it for every batch."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: deque[str] = deque(maxlen=2)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


class Exporter:
    """Exports from a thread of its own, and drops what does not fit into its queue.

    Args:
        exporter: the SDK's, or whatever else takes spans; it may block, fail or raise. Where it returns an `Outcome`, a
            batch that may be taken later is tried again, for as long as it takes: new spans find no room then. One that
            is refused for what is in it is halved, and the halves are tried, so that a span costs only itself.
        queue_size: the most spans that are kept, those on their way included. Users share it: where there is no room
            for one more, the user with most spans loses his newest.

    Attributes:
        crowded: says whose spans found no room.
    """

    def __init__(
        self,
        exporter: SpanExporter,
        queue_size: int = _QUEUE,
        batch_size: int = _BATCH,
        delay_s: float = _DELAY_S,
        pause_s: float = _PAUSE_S,
    ) -> None:
        self._exporter = exporter
        self._queue_size = queue_size
        self._batch_size = min(batch_size, queue_size)
        self._delay_s = delay_s
        self._pause_s = pause_s
        self._queue: SharedQueue[tuple[Exchange, Resource]] = SharedQueue(queue_size)
        self.crowded = Crowded("spans that waited for the collector", queue_size)
        self._batch: list[tuple[Exchange, Resource]] = []  # on its way
        self._parts: list[list[tuple[Exchange, Resource]]] = []  # of batches that were halved; the last one is next
        self._halvings = _HALVINGS  # that are left
        self._attempts = 0  # to send it
        self._changed = threading.Condition(threading.Lock())
        self._closing = self._closed = False
        self._exported = self._dropped = self._failed = self._rejected = self._unsent = 0
        self._works = True
        self._reason = ""
        self._failing_since = self._told_at = 0.0  # Unix time
        self._said = _Said()
        _SDK.addHandler(self._said)
        _SDK.propagate = False
        _SDK_TRACE_STATE.setLevel(logging.ERROR)  # it warns of each malformed tracestate: any peer can send those
        self.thread = Supervised("spandial-export", "export of spans", self._run, still_s=_STILL_S)
        self.thread.start()

    @classmethod
    def from_environ(cls, enabled: bool = False, queue_size: int = _QUEUE) -> Exporter | None:
        """An exporter as the standard variables of this process say; None: no export.

        Raises SpandialError if they make no sense.
        """
        exporter = exporter_from_environ(os.environ, enabled)
        return cls(exporter, queue_size) if exporter is not None else None

    def offer(self, exchange: Exchange, resource: Resource, uid: int = -1) -> bool:
        """Whether a user's span is queued now. Never waits: a lock is held for as long as a batch takes to be taken
        out."""
        with self._changed:
            if self._closing:
                self._unsent += 1
                return False
            if self._queued() >= self._queue_size:
                self._dropped += 1
                loser, held = self._queue.make_room(uid)
                self.crowded.lose(loser, held)
                if loser == uid:
                    return False
            self._queue.put(uid, (exchange, resource))
            if len(self._queue) == self._batch_size:
                self._changed.notify()
            return True

    def shed(self) -> None:
        """Lose what is queued, but for the batch that is on its way: for the memory."""
        with self._changed:
            self._dropped += len(self._queue) + sum(map(len, self._parts))
            self._queue.clear()
            self._parts.clear()

    def counts(self) -> ExportCounts:
        with self._changed:
            return ExportCounts(
                self._queued(), self._exported, self._dropped, self._failed, self._rejected, self._unsent
            )

    def close(self, timeout: float = _FLUSH_S) -> None:
        """Export what is queued, for so many seconds; what is left then is lost, and counted. Nothing more is taken."""
        with self._changed:
            if self._closing:
                return
            self._closing = True
            self._changed.notify()
        self.thread.join(timeout)
        self._exporter.shutdown()  # ends its waits
        self.thread.join(_SHUTDOWN_S)
        with self._changed:
            self._closed = True
            self._unsent += self._queued()
            self._queue.clear()
            self._parts.clear()
            self._batch = []
        _SDK.removeHandler(self._said)

    def _run(self) -> None:
        while batch := self._take():
            outcome = self._export(batch)
            if self._halve(batch, outcome):
                continue
            self._settle(batch, outcome)
            self._tell(outcome, len(batch))
            found = outcome.in_part and len(batch) == 1 and self._halvings  # what is wrong is this span
            if outcome.result != "taken" and not found and not self._pause(outcome.after_s):
                return

    def _take(self) -> list[tuple[Exchange, Resource]]:
        """The next batch, or the last one once more; empty: there will be none any more."""
        while True:
            self.thread.beat()
            with self._changed:
                if self._batch:
                    return self._batch
                if self._parts:
                    self._batch = self._parts.pop()
                    self._attempts = 0
                    return self._batch
                self._changed.wait_for(lambda: len(self._queue) >= self._batch_size or self._closing, self._delay_s)
                if self._queue or self._closing:
                    self._batch = self._queue.take(self._batch_size)
                    self._attempts = 0
                    return self._batch

    def _halve(self, batch: list[tuple[Exchange, Resource]], outcome: Outcome) -> bool:
        """Whether the halves of a batch that was refused will be tried."""
        with self._changed:
            if not outcome.in_part or len(batch) == 1 or not self._halvings or self._closed:
                return False
            self._halvings -= 1
            self._batch = []
            middle = len(batch) // 2
            self._parts += [batch[middle:], batch[:middle]]
            return True

    def _queued(self) -> int:
        return len(self._queue) + len(self._batch) + sum(map(len, self._parts))

    def _settle(self, batch: Sequence[tuple[Exchange, Resource]], outcome: Outcome) -> None:
        with self._changed:
            if self._closed:  # and the batch was given up
                return
            self._attempts += 1
            if outcome.result == "again":
                return
            self._batch = []
            if outcome.result == "taken":
                self._halvings = _HALVINGS
                self._exported += len(batch) - outcome.rejected
                self._rejected += outcome.rejected
            else:
                self._failed += len(batch)

    def _pause(self, after_s: float | None) -> bool:
        """Wait until the next attempt. False where the exporter is being closed and a batch could not be sent."""
        with self._changed:
            if self._closing and self._batch:
                return False
        pause = min(self._pause_s * 2 ** min(self._attempts - 1, 10), _PAUSE_MAX_S) * random.uniform(0.8, 1.2)
        until = time.monotonic() + (pause if after_s is None else after_s)
        while (left := until - time.monotonic()) > 0:
            self.thread.beat()
            with self._changed:
                if self._changed.wait_for(lambda: self._closing, min(left, 1.0)):
                    break  # one attempt more
        return True

    def _export(self, batch: Sequence[tuple[Exchange, Resource]]) -> Outcome:
        from opentelemetry.sdk.trace.export import SpanExportResult

        try:
            result: Any = self._exporter.export([span_of(*each) for each in batch])
        except Exception as error:  # an exporter must not end the thread that all others' spans depend on
            # A closed channel's is no fault of the batch.
            said = text_of(f"{type(error).__name__}: {error}", 500)
            return Outcome("again" if self._closing else "refused", said=said, in_part=not self._closing)
        if isinstance(result, Outcome):
            return result
        return Outcome("taken" if result is SpanExportResult.SUCCESS else "refused")

    @property
    def trouble(self) -> str:
        """Why no spans are exported, in one sentence; empty where they are."""
        if self._works:
            return ""
        counts = self.counts()
        lost = counts.dropped_queue_full + counts.export_failed + counts.rejected
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self._failing_since))
        return f"no spans are exported since {since} ({self._reason}): {counts.queued} wait, and {lost} are lost."

    def _tell(self, outcome: Outcome, sent: int) -> None:
        said = outcome.said or " ".join(self._said.lines)
        self._said.lines.clear()
        if outcome.rejected:
            _log.warning("the collector rejected spans", rejected=outcome.rejected, of=sent, said=said)
        works = outcome.result == "taken"
        counts, now = self.counts()._asdict(), time.time()
        if works and not self._works:
            _log.info("spans are exported again", **counts)
        elif not works:
            if self._works:
                self._failing_since = now
            self._reason = text_of(said, 200)
            if self._works or not 0 <= now - self._told_at < _TOLD_EVERY_S:
                self._told_at = now
                _log.warning("spans cannot be exported", reason=said, **counts)
        self._works = works
