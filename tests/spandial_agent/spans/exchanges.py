"""Exchanges as pairing delivers them."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from spandial_agent.spans.record import Exchange

__all__ = ["START_NS", "any_exchange", "exchange"]

START_NS = 1_700_000_000_000_000_000


def exchange(protocol: Any = "http", *, server: bool = True, number: int = 1, **fields: Any) -> Exchange:
    """One that took a millisecond; its ids hold the number."""
    identity = {
        "trace_id": number << 64 | number,
        "span_id": number,
        "start_ns": START_NS,
        "end_ns": START_NS + 1_000_000,
    }
    return Exchange(protocol, server, **{**identity, **fields})


_texts = st.text(max_size=20)
_statuses = st.none() | st.integers(-1, 1000)
_ports = st.integers(0, 65535)
_sizes = st.none() | st.integers(0, 1 << 62)

any_exchange = st.builds(
    Exchange,
    protocol=st.sampled_from(["http", "grpc", "postgresql", "mysql", "redis"]),
    server=st.booleans(),
    trace_id=st.integers(1, (1 << 128) - 1),
    span_id=st.integers(1, (1 << 64) - 1),
    start_ns=st.integers(0, 1 << 63),
    end_ns=st.integers(0, 1 << 63),
    parent_span_id=st.integers(0, (1 << 64) - 1),
    trace_state=st.sampled_from(["", "ot=rv:abcdef01234567", "a=1,b=2", "no tracestate", ",", "a=1,a=2"]) | _texts,
    trace_flags=st.integers(0, 255),
    end=st.sampled_from(["answered", "connection_closed", "process_exited", "no_answer_seen"]),
    peer_address=_texts | st.sampled_from(["10.0.0.1", "::1", "/run/db.sock"]),
    peer_port=_ports,
    local_address=_texts,
    local_port=_ports,
    request_bytes=_sizes,
    response_bytes=_sizes,
    request_body_bytes=_sizes,
    response_body_bytes=_sizes,
    method=_texts | st.sampled_from(["GET", "POST", "get"]),
    path=_texts,
    authority=_texts | st.from_regex(r"[a-z.@\[\]:0-9]{0,20}", fullmatch=True),
    scheme=st.sampled_from(["http", "https", "", "x"]),
    version=st.sampled_from(["", "1.0", "1.1", "2"]),
    status=_statuses,
    rpc_service=_texts,
    rpc_method=_texts,
    operation=_texts,
    collection=_texts,
    namespace=_texts,
    returned_rows=_sizes,
    query_text=_texts,
    error=st.booleans(),
    error_code=_texts,
)
