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
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags, TraceState

from spandial_agent.spans.conventions import SCHEMA_URL, describe
from spandial_agent.spans.ledger import Ledger
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
_FLUSH_S = 0.7  # at the end
_SHUTDOWN_S = 0.2

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
            batch that may be taken later is tried again, for as long as it takes: new spans find no room then.
        queue_size: the most spans that are kept, those on their way included.
        ledger: keeps over a restart how many spans were lost at the end.
    """

    def __init__(
        self,
        exporter: SpanExporter,
        queue_size: int = _QUEUE,
        batch_size: int = _BATCH,
        delay_s: float = _DELAY_S,
        pause_s: float = _PAUSE_S,
        ledger: Ledger | None = None,
    ) -> None:
        self._exporter = exporter
        self._queue_size = queue_size
        self._batch_size = min(batch_size, queue_size)
        self._delay_s = delay_s
        self._pause_s = pause_s
        self._ledger = ledger
        self._queue: deque[tuple[Exchange, Resource]] = deque()
        self._batch: list[tuple[Exchange, Resource]] = []  # on its way
        self._attempts = 0  # to send it
        self._changed = threading.Condition(threading.Lock())
        self._closing = self._closed = False
        self._exported = self._dropped = self._failed = self._rejected = self._unsent = 0
        self._works = True
        self._said = _Said()
        _SDK.addHandler(self._said)
        _SDK.propagate = False
        _SDK_TRACE_STATE.setLevel(logging.ERROR)  # it warns of each malformed tracestate: any peer can send those
        self.thread = Supervised("spandial-export", "export of spans", self._run, still_s=_STILL_S)
        self.thread.start()

    @classmethod
    def from_environ(
        cls, enabled: bool = False, queue_size: int = _QUEUE, ledger: Path | None = None
    ) -> Exporter | None:
        """An exporter as the standard variables of this process say; None: no export.

        Args:
            ledger: the file that keeps over a restart how many spans were lost at the end.

        Raises SpandialError if they make no sense.
        """
        exporter = exporter_from_environ(os.environ, enabled)
        if exporter is None:
            return None
        return cls(exporter, queue_size, ledger=Ledger(ledger) if ledger is not None else None)

    @property
    def lost_before(self) -> int:
        """Spans that were lost when agents before this one ended."""
        return self._ledger.before if self._ledger is not None else 0

    def offer(self, exchange: Exchange, resource: Resource) -> bool:
        """Whether the span will be tried. Never waits: a lock is held for as long as a batch takes to be taken out."""
        with self._changed:
            if self._closing:
                self._unsent += 1
                return False
            if len(self._queue) + len(self._batch) >= self._queue_size:
                self._dropped += 1
                return False
            self._queue.append((exchange, resource))
            if len(self._queue) == self._batch_size:
                self._changed.notify()
            return True

    def counts(self) -> ExportCounts:
        with self._changed:
            queued = len(self._queue) + len(self._batch)
            return ExportCounts(queued, self._exported, self._dropped, self._failed, self._rejected, self._unsent)

    def close(self, timeout: float = _FLUSH_S) -> None:
        """Export what is queued, for so many seconds; what is left then is lost, and told. Nothing more is taken."""
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
            self._unsent += len(self._queue) + len(self._batch)
            self._queue.clear()
            self._batch = []
        if self._unsent:
            _log.warning("spans were lost at the end", spans=self._unsent, reason="the collector did not take them")
        if self._ledger is not None:
            self._ledger.note(self._unsent)
            self._ledger.close()
        _SDK.removeHandler(self._said)

    def _run(self) -> None:
        while batch := self._take():
            outcome = self._export(batch)
            self._settle(batch, outcome)
            self._tell(outcome, len(batch))
            if outcome.result != "taken" and not self._pause(outcome.after_s):
                return

    def _take(self) -> list[tuple[Exchange, Resource]]:
        """The next batch, or the last one once more; empty: there will be none any more."""
        while True:
            self._note()
            with self._changed:
                if self._batch:
                    return self._batch
                self._changed.wait_for(lambda: len(self._queue) >= self._batch_size or self._closing, self._delay_s)
                if self._queue or self._closing:
                    self._batch = [self._queue.popleft() for _ in range(min(len(self._queue), self._batch_size))]
                    self._attempts = 0
                    return self._batch

    def _settle(self, batch: Sequence[tuple[Exchange, Resource]], outcome: Outcome) -> None:
        with self._changed:
            if self._closed:  # and the batch was given up
                return
            self._attempts += 1
            if outcome.result == "again":
                return
            self._batch = []
            if outcome.result == "taken":
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
            self._note()
            with self._changed:
                if self._changed.wait_for(lambda: self._closing, min(left, 1.0)):
                    break  # one attempt more
        return True

    def _note(self) -> None:
        self.thread.beat()
        if self._ledger is not None and not self._closed:
            self._ledger.note(len(self._queue) + len(self._batch))

    def _export(self, batch: Sequence[tuple[Exchange, Resource]]) -> Outcome:
        from opentelemetry.sdk.trace.export import SpanExportResult

        try:
            result: Any = self._exporter.export([span_of(*each) for each in batch])
        except Exception as error:  # an exporter must not end the thread that all others' spans depend on
            # A closed channel's is no fault of the batch.
            said = text_of(f"{type(error).__name__}: {error}", 500)
            return Outcome("again" if self._closing else "refused", said=said)
        if isinstance(result, Outcome):
            return result
        return Outcome("taken" if result is SpanExportResult.SUCCESS else "refused")

    def _tell(self, outcome: Outcome, sent: int) -> None:
        said = outcome.said or " ".join(self._said.lines)
        self._said.lines.clear()
        if outcome.rejected:
            _log.warning("the collector rejected spans", rejected=outcome.rejected, of=sent, said=said)
        works = outcome.result == "taken"
        if works != self._works:
            counts = self.counts()._asdict()
            if works:
                _log.info("spans are exported again", **counts)
            else:
                _log.warning("spans cannot be exported", reason=said, **counts)
        self._works = works
