"""Pair kept entries and calls with their answers. Pure: time comes with the records."""

from __future__ import annotations

import os
import random
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from socket import AF_INET, AF_INET6
from typing import Any, NamedTuple

from spandial.abi import ADDRESSES, BODY_UNKNOWN, RANDOMNESS_MASK, EntryKind, Event, Protocol, RecordFlag
from spandial.labels import Labels
from spandial_agent.records.conversations import Call
from spandial_agent.records.protocols import mysql, postgres, redis
from spandial_agent.records.protocols.database import Outcome
from spandial_agent.records.protocols.http1 import parse_status
from spandial_agent.records.protocols.http2 import RESET_CODES, Response, grpc_status_of_reset
from spandial_agent.records.record import Entry
from spandial_agent.spans.record import End, Exchange
from spandial_agent.spans.record import Protocol as ProtocolName

__all__ = ["Exchanges", "Peer"]

_OPEN_MAX = 20_000  # exchanges that wait for their answers
_ADDRESSES_MAX = 16_384  # connections whose ends are known
_IDLE_NS = 1_000_000_000  # an answer of which no more has come for so long is complete
_UNANSWERED_NS = 300_000_000_000
_STREAM_NS = 3_600_000_000_000  # an HTTP/2 stream that has been answered may go on for so long
_FIRST = 128  # bytes of a record of a part of an answer that are its beginning; the rest is its end

_INTERIM = {100, 102, 103}  # RFC 9110, section 15.2: not the answer yet; 101 is

_NAMES: dict[Protocol, ProtocolName] = {
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


class _Addresses(NamedTuple):
    local_address: str = ""
    local_port: int = 0
    peer_address: str = ""
    peer_port: int = 0


@dataclass
class _Open:
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


class Exchanges:
    """One conversation is a connection's requests in their order, or a stream of HTTP/2. Requests that were pipelined
    end together, with the last answer before the next request: what belongs to which of them is not looked at.

    Args:
        finish: takes each exchange, its times those of CLOCK_BOOTTIME, and its process.
        bits: the source of ids.

    Attributes:
        lost: exchanges for which there was no room.
    """

    def __init__(self, finish: Callable[[Exchange, Peer], None], bits: random.Random | None = None) -> None:
        self.lost = 0
        self._finish_with = finish
        self._bits = bits or random.Random(os.urandom(32))  # the system's own takes microseconds for each
        self._connections: dict[int, list[_Open]] = {}
        self._streams: dict[int, dict[int, _Open]] = {}
        self._addresses: OrderedDict[int, _Addresses] = OrderedDict()
        self._open = 0

    def __len__(self) -> int:
        return self._open

    def take(self, entry: Entry, said: Call | Response | None, process: Peer) -> bool:
        """A record of a process without a hook, and what it says: a kept entry or call, or a part of an answer.

        Returns False for a call that no exchange can be made of: its connection is not followed.
        """
        if entry.event == Event.ENTRY and isinstance(said, Call):
            if entry.protocol not in _NAMES or not entry.connection:
                return False
            self._begin(entry, said, process)
        elif entry.event == Event.ANSWER:
            if entry.protocol == Protocol.HTTP2:
                self._answer_stream(entry, said if isinstance(said, Response) else None)
            else:
                self._answer(entry)
        elif entry.event == Event.CLOSED:
            self._close(entry.connection, "connection_closed", entry.time_ns)
        elif entry.event == Event.CONNECTION:
            self._addresses[entry.connection] = _addresses(entry.request)
            if len(self._addresses) > _ADDRESSES_MAX:
                self._addresses.popitem(last=False)
        return True

    def sweep(self, now_ns: int) -> None:
        """Finish what is complete, and what has waited too long."""
        for connection, open_ in list(self._connections.items()):
            last = open_[-1]
            if last.answered_ns:
                if now_ns - last.answered_ns >= _IDLE_NS:
                    self._end(connection, "answered", now_ns)
            elif now_ns - last.entry.time_ns >= _UNANSWERED_NS:
                self._end(connection, "no_answer_seen", now_ns)
        for connection, streams in list(self._streams.items()):
            for stream, exchange in list(streams.items()):
                longest = _STREAM_NS if exchange.answered_ns else _UNANSWERED_NS
                if now_ns - exchange.entry.time_ns >= longest:
                    self._end_stream(connection, stream, "no_answer_seen", now_ns)

    def exited(self, pid: int, now_ns: int) -> None:
        """A process ended, and all its connections with it."""
        for connection, open_ in list(self._connections.items()):
            if open_[0].process.pid == pid:
                self._close(connection, "process_exited", now_ns)
        for connection, streams in list(self._streams.items()):
            if next(iter(streams.values())).process.pid == pid:
                self._close(connection, "process_exited", now_ns)

    def finish_all(self, now_ns: int) -> None:
        for connection in [*self._connections, *self._streams]:
            self._close(connection, "no_answer_seen", now_ns)

    def _begin(self, entry: Entry, call: Call, process: Peer) -> None:
        known = self._connections.get(entry.connection)
        if known is not None and known[-1].answered_ns:
            self._end(entry.connection, "answered", entry.time_ns)
        if entry.protocol == Protocol.HTTP2 and entry.stream in self._streams.get(entry.connection, ()):
            self._end_stream(entry.connection, entry.stream, "no_answer_seen", entry.time_ns)
        if self._open >= _OPEN_MAX:
            self.lost += 1
            return
        served = self._connections.get(entry.serving)
        if served is not None and call.trace_id in (0, served[-1].trace_id):
            trace_id, parent_span_id = served[-1].trace_id, served[-1].span_id
        else:
            trace_id, parent_span_id = call.trace_id or self._new_trace_id(entry), call.span_id
        exchange = _Open(entry, call, process, trace_id, self._bits.getrandbits(64) or 1, parent_span_id)
        self._open += 1
        if entry.protocol == Protocol.HTTP2:
            self._streams.setdefault(entry.connection, {})[entry.stream] = exchange
        else:
            self._connections.setdefault(entry.connection, []).append(exchange)

    def _new_trace_id(self, entry: Entry) -> int:
        """One by which everyone downstream decides as the kernel did."""
        return (self._bits.getrandbits(72) << 56 | entry.randomness & RANDOMNESS_MASK) or 1

    def _answer(self, entry: Entry) -> None:
        known = self._connections.get(entry.connection)
        if known is None:
            return
        known[-1].body += entry.body
        first = entry.request[:_FIRST]
        last = entry.request if entry.size <= len(entry.request) else entry.request[_FIRST:]
        if entry.protocol == Protocol.HTTP1 and (parse_status(first) or 0) in _INTERIM:
            return
        for exchange in known:
            if not exchange.answered_ns:
                exchange.first = first
            exchange.last = last
            exchange.answered_ns = entry.time_ns
            exchange.answer_bytes += entry.size

    def _answer_stream(self, entry: Entry, response: Response | None) -> None:
        exchange = self._streams.get(entry.connection, {}).get(entry.stream)
        if exchange is None:
            return
        if entry.flags & RecordFlag.RESET:
            exchange.reset = int.from_bytes(entry.request[:4], "big")
        if response is not None:
            if response.status not in _INTERIM and exchange.status is None:
                exchange.status = response.status
            if response.grpc_status is not None:
                exchange.grpc_status = response.grpc_status
        exchange.answered_ns = entry.time_ns
        if entry.flags & RecordFlag.END:
            without_body = response is not None and response.status is not None  # its first block is its last
            exchange.answer_bytes, exchange.body = 0 if without_body else entry.size, entry.body
            self._end_stream(entry.connection, entry.stream, "answered", entry.time_ns)

    def _close(self, connection: int, end: End, now_ns: int) -> None:
        self._end(connection, end, now_ns)
        for stream in list(self._streams.get(connection, ())):
            self._end_stream(connection, stream, end, now_ns)
        if end != "no_answer_seen":
            self._addresses.pop(connection, None)

    def _end(self, connection: int, end: End, now_ns: int) -> None:
        pipelined = self._connections.pop(connection, ())
        for open_ in pipelined:
            end_ns = open_.answered_ns or now_ns
            self._finish(open_, "answered" if open_.answered_ns else end, end_ns, alone=len(pipelined) == 1)

    def _end_stream(self, connection: int, stream: int, end: End, now_ns: int) -> None:
        streams = self._streams[connection]
        open_ = streams.pop(stream)
        if not streams:
            del self._streams[connection]
        self._finish(open_, end, now_ns, alone=True)

    def _finish(self, open_: _Open, end: End, end_ns: int, *, alone: bool) -> None:
        self._open -= 1
        addresses = self._addresses.get(open_.entry.connection, _Addresses())
        self._finish_with(_exchange(open_, addresses, end, end_ns, alone), open_.process)


def _exchange(open_: _Open, addresses: _Addresses, end: End, end_ns: int, alone: bool) -> Exchange:
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
        more.pop("protocol", _NAMES[entry.protocol]),
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


def _of_stream(open_: _Open, end: End) -> dict[str, Any]:
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


def _addresses(record: bytes) -> _Addresses:
    """Both ends as the kernel told them (struct spandial_addresses)."""
    if len(record) < ADDRESSES.size:
        return _Addresses()
    family, local_port, peer_port, _, local, peer = ADDRESSES.unpack_from(record)
    if family == AF_INET:
        return _Addresses(str(IPv4Address(local[:4])), local_port, str(IPv4Address(peer[:4])), peer_port)
    if family == AF_INET6:
        return _Addresses(_text(IPv6Address(local)), local_port, _text(IPv6Address(peer)), peer_port)
    return _Addresses()


def _text(address: IPv6Address) -> str:
    return str(address.ipv4_mapped or address)
