"""Exchanges to any OTLP endpoint as spans, through the exporters of OpenTelemetry's SDK."""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Literal, NamedTuple

import structlog
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags, TraceState

from spandial_agent.errors import SpandialError
from spandial_agent.spans.conventions import SCHEMA_URL, describe
from spandial_agent.spans.record import Exchange
from spandial_agent.supervised import Supervised

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

__all__ = ["ExportCounts", "Exporter", "protocol_from_environ", "span_of"]

_log = structlog.get_logger("spandial.export")

_QUEUE = 20_000  # spans
_BATCH = 512  # spans; OTEL_BSP_MAX_EXPORT_BATCH_SIZE's default
_DELAY_S = 1.0  # a span waits no longer for its batch to fill
_STILL_S = 300.0  # one request to the collector may take OTEL_EXPORTER_OTLP_TIMEOUT
_PAUSE_S = 1.0  # after a batch that failed, on top of the exporter's own retries

_SCOPE = InstrumentationScope("spandial", version("spandial"), SCHEMA_URL)
_UNSET = Status(StatusCode.UNSET)
_NO_STATE = TraceState()

_SDK = logging.getLogger("opentelemetry.exporter.otlp")
_SDK_GRPC = logging.getLogger("opentelemetry.exporter.otlp.proto.grpc.exporter")
_SDK_TRACE_STATE = logging.getLogger("opentelemetry.trace.span")

OtlpProtocol = Literal["grpc", "http/protobuf"]


def protocol_from_environ(environ: Mapping[str, str], enabled: bool = False) -> OtlpProtocol | None:
    """Which OTLP protocol the standard variables ask for; None: no export.

    Export is on if there is an endpoint, if OTEL_TRACES_EXPORTER is `otlp`, or if `enabled`; off if that is `none`. The
    protocol is http/protobuf by default (OpenTelemetry, OTLP exporter configuration). Raises SpandialError for others.
    """

    def value(name: str) -> str:
        return environ.get(name, "").strip()

    wanted = value("OTEL_TRACES_EXPORTER")
    endpoint = value("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or value("OTEL_EXPORTER_OTLP_ENDPOINT")
    if wanted == "none" or not (endpoint or enabled or wanted == "otlp"):
        return None
    chosen = value("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or value("OTEL_EXPORTER_OTLP_PROTOCOL") or "http/protobuf"
    if chosen == "grpc":
        return "grpc"
    if chosen == "http/protobuf":
        return "http/protobuf"
    raise SpandialError(f"OTEL_EXPORTER_OTLP_PROTOCOL is {chosen!r}: set it to grpc or http/protobuf.")


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
    """Spans since the start. Each one offered is in exactly one of these.

    The SDK's exporters take a partial success (OTLP, section "Partial Success") for a success.
    """

    queued: int  # now: waiting, or on their way
    exported: int
    dropped_queue_full: int
    export_failed: int  # the endpoint refused them or did not answer in time, or the exporter was closed


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
        exporter: the SDK's, or whatever else takes spans; it may block, fail or raise.
        queue_size: the most spans that are kept, those on their way included.
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
        self._queue: deque[tuple[Exchange, Resource]] = deque()
        self._changed = threading.Condition(threading.Lock())
        self._closing = False
        self._on_their_way = self._exported = self._dropped = self._failed = 0
        self._works = True
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
        protocol = protocol_from_environ(os.environ, enabled)
        if protocol is None:
            return None
        try:
            exporter = _grpc_exporter() if protocol == "grpc" else _http_exporter()
        except Exception as error:  # a certificate that is not there, a time-out that is no number, a package missing
            raise SpandialError(
                f"No OTLP exporter can be made: {error}. See the OTEL_EXPORTER_OTLP_* variables."
            ) from error
        return cls(exporter, queue_size)

    def offer(self, exchange: Exchange, resource: Resource) -> bool:
        """Whether the span will be tried. Never waits: a lock is held for as long as a batch takes to be taken out."""
        with self._changed:
            if self._closing:
                self._failed += 1
                return False
            if len(self._queue) + self._on_their_way >= self._queue_size:
                self._dropped += 1
                return False
            self._queue.append((exchange, resource))
            if len(self._queue) == self._batch_size:
                self._changed.notify()
            return True

    def counts(self) -> ExportCounts:
        with self._changed:
            return ExportCounts(len(self._queue) + self._on_their_way, self._exported, self._dropped, self._failed)

    def close(self, timeout: float = 5.0) -> None:
        """Export what is queued, for so many seconds; what is left then has failed. Nothing is taken any more."""
        with self._changed:
            if self._closing:
                return
            self._closing = True
            self._changed.notify()
        self.thread.join(timeout)
        self._exporter.shutdown()  # ends its waits and retries
        self.thread.join(1.0)
        with self._changed:
            self._give_up()
        _SDK.removeHandler(self._said)

    def _give_up(self) -> None:
        self._failed += len(self._queue)
        self._queue.clear()

    def _run(self) -> None:
        while batch := self._take():
            self.thread.beat()
            works = self._export(batch)
            with self._changed:
                self._on_their_way = 0
                if works:
                    self._exported += len(batch)
                else:
                    self._failed += len(batch)
                    if self._closing:
                        self._give_up()
            self._tell(works)
            if not works:
                self._pause()

    def _take(self) -> list[tuple[Exchange, Resource]]:
        """The next batch; empty: there will be none any more."""
        with self._changed:
            while True:
                self.thread.beat()
                self._changed.wait_for(lambda: len(self._queue) >= self._batch_size or self._closing, self._delay_s)
                if self._queue or self._closing:
                    break
            count = self._on_their_way = min(len(self._queue), self._batch_size)
            return [self._queue.popleft() for _ in range(count)]

    def _pause(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closing, self._pause_s)

    def _export(self, batch: Sequence[tuple[Exchange, Resource]]) -> bool:
        from opentelemetry.sdk.trace.export import SpanExportResult

        try:
            return self._exporter.export([span_of(*each) for each in batch]) is SpanExportResult.SUCCESS
        except Exception as error:  # an exporter must not end the thread that all others' spans depend on
            self._said.lines.append(f"{type(error).__name__}: {error}")
            return False

    def _tell(self, works: bool) -> None:
        if works != self._works:
            counts = self.counts()._asdict()
            if works:
                _log.info("spans are exported again", **counts)
            else:
                _log.warning("spans cannot be exported", reason=" ".join(self._said.lines), **counts)
        self._works = works
        self._said.lines.clear()


def _grpc_exporter() -> SpanExporter:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    from spandial_agent.spans.encoding import encode

    # Drops what is said again within 20 s, with whatever arguments; said it is once per change here, and then in full.
    _SDK_GRPC.filters.clear()

    class GrpcExporter(OTLPSpanExporter):
        def _translate_data(self, data: Sequence[ReadableSpan]) -> ExportTraceServiceRequest:
            return encode(data)

    return GrpcExporter()


def _http_exporter() -> SpanExporter:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import SpanExportResult

    from spandial_agent.spans.encoding import encode

    class HttpExporter(OTLPSpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            # 1.45 sends bytes through a client of its own; what came before has no such place, and encodes by itself.
            send = getattr(getattr(self, "_client", None), "export", None)
            if send is None or self._shutdown:
                return super().export(spans)
            sent = send(encode(spans).SerializeToString())
            return SpanExportResult.SUCCESS if sent.success else SpanExportResult.FAILURE

    return HttpExporter()
