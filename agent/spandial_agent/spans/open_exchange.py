"""A request that waits for its answer, and the exchange that it becomes."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from socket import AF_INET, AF_INET6
from typing import Any, NamedTuple

from spandial.abi import ADDRESSES, BODY_UNKNOWN, EntryKind, Protocol, RecordFlag
from spandial.labels import Labels
from spandial_agent.records.conversations import Call
from spandial_agent.records.protocols import mysql, postgres, redis
from spandial_agent.records.protocols.database import Outcome
from spandial_agent.records.protocols.http1 import parse_status
from spandial_agent.records.protocols.http2 import RESET_CODES, grpc_status_of_reset
from spandial_agent.records.record import Entry
from spandial_agent.spans.record import End, Exchange
from spandial_agent.spans.record import Protocol as ProtocolName

__all__ = ["PROTOCOL_NAMES", "Addresses", "OpenExchange", "Peer", "addresses_of", "exchange_of"]

PROTOCOL_NAMES: dict[Protocol, ProtocolName] = {
    Protocol.HTTP1: "http",
    Protocol.HTTP2: "http",
    Protocol.POSTGRES: "postgresql",
    Protocol.MYSQL: "mysql",
    Protocol.REDIS: "redis",
}


class Peer(NamedTuple):
    """The process that an exchange is seen in."""

    pid: int
    start_time: int
    labels: Labels
    uid: int = -1  # whose share it has of what there is only so much of; -1: not known


class Addresses(NamedTuple):
    """Both ends of a connection."""

    local_address: str = ""
    local_port: int = 0
    peer_address: str = ""
    peer_port: int = 0


@dataclass(eq=False)
class OpenExchange:
    """A request whose answer has not come, or not all of it."""

    entry: Entry
    call: Call
    process: Peer
    trace_id: int
    span_id: int
    parent_span_id: int
    first: bytes = b""
    last: bytes = b""
    answered_ns: int = 0  # when the last part of the answer came; 0: none has
    answer_bytes: int = 0
    body: int = 0  # bytes of the request behind the entry's message; HTTP/2: of the request's body
    status: int | None = None  # HTTP/2's
    grpc_status: int | None = None
    reset: int | None = None  # the error code of RST_STREAM
    pipelined: bool = False  # with others that were given up

    def take_answer_of(self, other: OpenExchange) -> None:
        """Requests that were pipelined have one answer."""
        self.first, self.last = other.first, other.last
        self.answered_ns, self.answer_bytes = other.answered_ns, other.answer_bytes


def exchange_of(open_: OpenExchange, addresses: Addresses, end: End, end_ns: int, alone: bool) -> Exchange:
    """What became of a request.

    Args:
        alone: the answer is to it, and to no request that was sent with it.
    """
    entry, call = open_.entry, open_.call
    more: dict[str, Any]  # collected before: to replace fields of an exchange takes as long as to make it
    if entry.protocol == Protocol.HTTP1:
        more = {"status": parse_status(open_.first) if open_.first else None, "version": "1.1"}
        if alone and end == "answered":
            more |= {"request_bytes": entry.size + open_.body, "response_bytes": open_.answer_bytes}
    elif entry.protocol == Protocol.HTTP2:
        more = _of_stream(open_, end)
    else:
        outcome, asked = _outcome(entry.protocol, open_.first, open_.last), call.operation
        more = {"error": outcome.error, "error_code": outcome.code}
        name = asked.name or (outcome.command if alone else "")
        more |= {"operation": name, "collection": asked.collection, "query_text": asked.text}
        more |= {"namespace": asked.namespace, "returned_rows": outcome.rows if alone else None}
    return Exchange(
        more.pop("protocol", PROTOCOL_NAMES[entry.protocol]),
        server=not entry.flags & RecordFlag.SENT,
        trace_id=open_.trace_id,
        span_id=open_.span_id,
        start_ns=entry.time_ns,
        end_ns=max(end_ns, entry.time_ns),
        parent_span_id=open_.parent_span_id,
        end=end,
        pid=entry.tgid,
        method=call.method,
        path=call.path,
        local_address=addresses.local_address,
        local_port=addresses.local_port,
        peer_address=addresses.peer_address,
        peer_port=addresses.peer_port,
        **more,
    )


def _of_stream(open_: OpenExchange, end: End) -> dict[str, Any]:
    call, reset, status = open_.call, open_.reset, open_.grpc_status
    more: dict[str, Any] = {"authority": call.authority, "scheme": call.scheme or "http", "version": "2"}
    if open_.entry.kind == EntryKind.GRPC or status is not None:
        if status is None and reset is not None:
            status = grpc_status_of_reset(reset)
        service, method = call.service, call.rpc_method
        return more | {"protocol": "grpc", "status": status, "rpc_service": service, "rpc_method": method}
    if reset:
        more |= {"error": True, "error_code": RESET_CODES.get(reset, str(reset))}
    if reset is None and end == "answered":
        more |= {"request_body_bytes": _body(open_.body), "response_body_bytes": _body(open_.answer_bytes)}
    return more | {"status": open_.status}


def _body(length: int) -> int | None:
    return length if length != BODY_UNKNOWN else None


def _outcome(protocol: Protocol, first: bytes, last: bytes) -> Outcome:
    if protocol == Protocol.POSTGRES:
        return postgres.parse_reply(first, last)
    if protocol == Protocol.MYSQL:
        return mysql.parse_reply(first, last)
    return redis.parse_reply(first)


def addresses_of(record: bytes) -> Addresses:
    """Both ends as the kernel told them (struct spandial_addresses)."""
    if len(record) < ADDRESSES.size:
        return Addresses()
    family, local_port, peer_port, _, local, peer = ADDRESSES.unpack_from(record)
    if family == AF_INET:
        return Addresses(str(IPv4Address(local[:4])), local_port, str(IPv4Address(peer[:4])), peer_port)
    if family == AF_INET6:
        return Addresses(_text(IPv6Address(local)), local_port, _text(IPv6Address(peer)), peer_port)
    return Addresses()


def _text(address: IPv6Address) -> str:
    return str(address.ipv4_mapped or address)
