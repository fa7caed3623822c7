"""How spans get to an OTLP endpoint, and what it answers (OTLP specification, "OTLP/gRPC" and "OTLP/HTTP").

The SDK's exporters bring what the standard variables say. Their own retries are not used: they give a batch up after
ten seconds, and take a partial success for a success.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from opentelemetry.sdk.trace import ReadableSpan

from spandial_agent.errors import SpandialError
from spandial_agent.text import text_of

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

__all__ = ["OtlpProtocol", "Outcome", "exporter_from_environ", "outcome_of_status", "protocol_from_environ"]

_AFTER_MAX_S = 300.0  # longer than this no collector is waited for
_RETRYABLE = frozenset({429, 502, 503, 504})  # OTLP/HTTP, "Failures"
_OF_CONTENT = frozenset({400, 413, 422})  # RFC 9110, section 15.5: it is malformed, too large, or makes no sense
_SDK_GRPC = logging.getLogger("opentelemetry.exporter.otlp.proto.grpc.exporter")

OtlpProtocol = Literal["grpc", "http/protobuf"]


class Outcome(NamedTuple):
    """What became of a batch.

    Attributes:
        result: "again": the endpoint may take it later.
        rejected: spans of a batch that was taken, which the endpoint threw away.
        said: by the endpoint, or what went wrong.
        after_s: when to try again, where the endpoint said so.
        in_part: of a batch that was refused for what is in it, parts may be taken.
    """

    result: Literal["taken", "again", "refused"]
    rejected: int = 0
    said: str = ""
    after_s: float | None = None
    in_part: bool = False


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


def exporter_from_environ(environ: Mapping[str, str], enabled: bool = False) -> SpanExporter | None:
    """An exporter as the standard variables say, whose `export` returns an `Outcome`; None: no export.

    Raises SpandialError if they make no sense.
    """
    protocol = protocol_from_environ(environ, enabled)
    if protocol is None:
        return None
    try:
        return _grpc_exporter() if protocol == "grpc" else _http_exporter()
    except Exception as error:  # a certificate that is not there, a time-out that is no number, a package missing
        raise SpandialError(
            f"No OTLP exporter can be made: {error}. See the OTEL_EXPORTER_OTLP_* variables."
        ) from error


def outcome_of_status(status: int, reason: str, headers: Mapping[str, str], body: bytes, sent: int) -> Outcome:
    """What an HTTP answer says of a batch of `sent` spans."""
    if 200 <= status < 300:
        return _outcome_of_success(body, sent)
    said = text_of(f"{status} {reason or ''} {body[:500].decode('utf-8', 'backslashreplace')}".strip(), 500)
    if status in _RETRYABLE:
        return Outcome("again", said=said, after_s=_retry_after(headers.get("Retry-After", "")))
    return Outcome("refused", said=said, in_part=status in _OF_CONTENT)


def _outcome_of_success(body: bytes, sent: int) -> Outcome:
    from google.protobuf.message import DecodeError
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

    try:
        return _outcome_of_response(ExportTraceServiceResponse.FromString(body), sent)
    except DecodeError:  # some answer "ok", or JSON
        return Outcome("taken")


def _outcome_of_response(response: Any, sent: int) -> Outcome:
    partial = response.partial_success
    return Outcome("taken", min(max(partial.rejected_spans, 0), sent), text_of(partial.error_message, 500))


def _is_untrusted(said: str) -> bool:
    """Whether the endpoint showed a certificate that is not trusted: no outage, and waiting does not mend it. OpenSSL,
    which both transports use, has this name for it."""
    return "CERTIFICATE_VERIFY_FAILED" in said


def _retry_after(header: str) -> float | None:
    """Seconds until when a Retry-After says (RFC 9110, section 10.2.3: seconds or a date)."""
    header = header.strip()
    if header.isascii() and header.isdigit():
        return min(float(header[:10]), _AFTER_MAX_S)
    try:
        return min(max(parsedate_to_datetime(header).timestamp() - time.time(), 0.0), _AFTER_MAX_S)
    except (ValueError, TypeError, OverflowError):
        return None


def _grpc_exporter() -> SpanExporter:
    from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]
    from grpc import RpcError, StatusCode
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    from spandial_agent.spans.encoding import encode

    # Drops what is said again within 20 s, with whatever arguments; the agent's log has a limit of its own.
    _SDK_GRPC.filters.clear()
    # OTLP/gRPC, "Failures"
    retryable = {
        StatusCode.CANCELLED,
        StatusCode.DEADLINE_EXCEEDED,
        StatusCode.ABORTED,
        StatusCode.OUT_OF_RANGE,
        StatusCode.UNAVAILABLE,
        StatusCode.DATA_LOSS,
    }

    def outcome_of(error: Any) -> Outcome:
        after, code = None, error.code()
        for key, value in error.trailing_metadata() or ():
            if key == "google.rpc.retryinfo-bin":
                delay = RetryInfo.FromString(value).retry_delay
                after = min(max(delay.seconds + delay.nanos / 1e9, 0.0), _AFTER_MAX_S)
        said = text_of(f"{code.name} {error.details()}", 500)
        if _is_untrusted(said):
            return Outcome("refused", said=said)
        if code in retryable or (code == StatusCode.RESOURCE_EXHAUSTED and after is not None):
            return Outcome("again", said=said, after_s=after)
        return Outcome("refused", said=said, in_part=code is StatusCode.INVALID_ARGUMENT)

    class GrpcExporter(OTLPSpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> Outcome:  # type: ignore[override]
            request, sdk = encode(spans), cast("Any", self)
            try:
                response = sdk._client.Export(request=request, metadata=sdk._headers, timeout=sdk._timeout)
            except RpcError as error:
                # A channel that has failed waits for up to two minutes until it connects again (gRPC, connection
                # back-off): a new one does at once.
                if error.code() == StatusCode.UNAVAILABLE and not sdk._shutdown:
                    sdk._channel.close()
                    sdk._initialize_channel_and_stub()
                return outcome_of(error)
            return _outcome_of_response(response, len(spans))

    return GrpcExporter()


def _http_exporter() -> SpanExporter:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    from spandial_agent.spans.encoding import encode

    class HttpExporter(OTLPSpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> Outcome:  # type: ignore[override]
            client: Any = self._client
            answer = client._submit(client._compress(encode(spans).SerializeToString()), client._timeout)
            if answer.status_code is None:
                error = answer.error
                said = text_of(f"{type(error).__name__}: {error}", 1000)
                # ValueError: requests' own for a URL that is none
                lasting = isinstance(error, ValueError) or _is_untrusted(said)
                return Outcome("refused" if lasting else "again", said=said)
            headers, reason = answer.headers(), answer.reason or ""
            return outcome_of_status(answer.status_code, reason, headers, answer.content(), len(spans))

    return HttpExporter()
