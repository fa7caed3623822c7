"""Calls of a sampler as a server's tracer makes them: contexts, trace ids, span kinds and attributes."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from opentelemetry.context import Context
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

from spandial import abi
from spandial.decision import format_threshold

__all__ = ["SPANS", "TRACESTATES", "Call", "SpanStart", "parented", "roots"]

Call = tuple[Context | None, int]  # the parent's context, the trace id
_Attributes = dict[str, str | int]


class SpanStart(NamedTuple):
    """A span's kind and the attributes that it starts with."""

    kind: SpanKind
    attributes: _Attributes | None


# What opentelemetry-instrumentation-asgi gives a request's span, in its order.
_HTTP: _Attributes = {
    "http.scheme": "http",
    "http.host": "127.0.0.1:8000",
    "net.host.port": 8000,
    "http.flavor": "1.1",
    "http.target": "/orders/17",
    "http.url": "http://127.0.0.1:8000/orders/17",
    "http.method": "GET",
    "http.server_name": "127.0.0.1:8000",
    "http.user_agent": "curl/7.88.1",
    "net.peer.ip": "127.0.0.1",
    "net.peer.port": 40312,
}
_HTTP_STABLE: _Attributes = {
    "url.scheme": "http",
    "server.address": "127.0.0.1:8000",
    "server.port": 8000,
    "network.protocol.version": "1.1",
    "url.path": "/orders/17",
    "http.request.method": "GET",
    "user_agent.original": "curl/7.88.1",
    "client.address": "127.0.0.1",
    "client.port": 40312,
}

SPANS = {
    "HTTP": SpanStart(SpanKind.SERVER, _HTTP),
    "HTTP, stable names": SpanStart(SpanKind.SERVER, _HTTP_STABLE),
    "gRPC": SpanStart(SpanKind.SERVER, {"rpc.system": "grpc", "rpc.service": "Orders", "rpc.method": "Get"}),
    "DB": SpanStart(SpanKind.CLIENT, {"db.system": "postgresql", "db.statement": "SELECT 1", "db.name": "orders"}),
    "internal": SpanStart(SpanKind.INTERNAL, None),
}


def roots(context: Context | None, count: int, random_bits: random.Random) -> list[Call]:
    """Calls without a parent, each with a trace id of its own."""
    return [(context, random_bits.getrandbits(128)) for _ in range(count)]


def parented(
    count: int, random_bits: random.Random, *, remote: bool, kept: bool, tracestate: Callable[[bool, int], TraceState]
) -> list[Call]:
    """Calls below a parent, each with a context and a trace of its own."""
    calls: list[Call] = []
    for _ in range(count):
        trace_id = random_bits.getrandbits(128)
        parent = SpanContext(
            trace_id,
            random_bits.getrandbits(64),
            is_remote=remote,
            trace_flags=TraceFlags(TraceFlags.SAMPLED if kept else TraceFlags.DEFAULT),
            trace_state=tracestate(kept, random_bits.getrandbits(56)),
        )
        calls.append((set_span_in_context(NonRecordingSpan(parent), Context()), trace_id))
    return calls


def _ot(kept: bool, drawn: int) -> TraceState:
    """`ot` of a caller that drew the randomness itself: kept at 50 %, or dropped at 1 %, so that 10 % divides both."""
    threshold = abi.threshold_of(abi.encode_word(50 if kept else 1))
    randomness = threshold + drawn % (abi.MAX_THRESHOLD - threshold) if kept else drawn % threshold
    return TraceState([("ot", f"{format_threshold(threshold)};rv:{randomness:014x}")])


TRACESTATES: dict[str, Callable[[bool, int], TraceState]] = {
    "none": lambda kept, drawn: TraceState(),
    "vendor": lambda kept, drawn: TraceState([("vendor", "t61rcWkgMzE"), ("congo", "ucfJifl5GOE")]),
    "ot=th;rv": _ot,
}
