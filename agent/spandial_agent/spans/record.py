"""A request and what became of it: what pairing delivers, and what a span is made of."""

from __future__ import annotations

from typing import Literal, NamedTuple

__all__ = ["End", "Exchange", "Protocol"]

Protocol = Literal["http", "grpc", "postgresql", "mysql", "redis"]

End = Literal["answered", "connection_closed", "process_exited", "no_answer_seen"]


class Exchange(NamedTuple):
    """One request, and its answer if there was one. What is not known is empty, 0 or None.

    Times are Unix time in ns. What is in here leaves the machine: paths hold no query, and statements no literals
    unless somebody asked for them as they were received.
    """

    protocol: Protocol
    server: bool  # the process received the request; otherwise it sent it
    trace_id: int  # 128 bits
    span_id: int
    start_ns: int  # the first byte of the request
    end_ns: int  # the last byte of the answer
    parent_span_id: int = 0  # 0: the root of its trace
    trace_state: str = ""  # the header (W3C Trace Context, section 3.3)
    trace_flags: int = 1  # the same, section 3.2.2.5; 1: sampled
    end: End = "answered"

    pid: int = 0
    peer_address: str = ""  # an IP address, or the path of a Unix socket
    peer_port: int = 0
    local_address: str = ""
    local_port: int = 0
    request_bytes: int | None = None  # on the wire; None unless exact
    response_bytes: int | None = None
    request_body_bytes: int | None = None  # HTTP/2; as for those
    response_body_bytes: int | None = None

    # HTTP and gRPC
    method: str = ""
    path: str = ""
    authority: str = ""  # the Host header, or :authority
    scheme: str = "http"
    version: str = ""  # of the protocol: "1.1", "2"
    status: int | None = None  # HTTP status code, or the number in grpc-status
    rpc_service: str = ""  # with its package: "shop.Orders"
    rpc_method: str = ""

    # databases
    operation: str = ""  # "SELECT", "HGET"
    collection: str = ""  # the table, if there is one and no other
    namespace: str = ""  # the database's name, or Redis' index of it
    query_text: str = ""
    returned_rows: int | None = None

    error: bool = False  # the answer is an error, whatever `status` says
    error_code: str = ""  # SQLSTATE, MySQL's error number, the prefix of Redis' error, a reason for an HTTP/2 reset
