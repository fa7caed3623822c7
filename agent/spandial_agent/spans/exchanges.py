"""Pair kept entries with the parts of their answers. Pure: time comes with the records."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from spandial.abi import RANDOMNESS_MASK, Event, Protocol
from spandial.labels import Labels
from spandial_agent.conversations import Call
from spandial_agent.entries import Entry
from spandial_agent.protocols import mysql, postgres, redis
from spandial_agent.protocols.http1 import parse_status
from spandial_agent.protocols.operation import Outcome
from spandial_agent.spans.record import End, Exchange
from spandial_agent.spans.record import Protocol as ProtocolName

__all__ = ["Exchanges", "Peer"]

_OPEN_MAX = 20_000  # exchanges that wait for their answers
_IDLE_NS = 1_000_000_000  # an answer of which no more has come for so long is complete
_UNANSWERED_NS = 300_000_000_000
_FIRST = 128  # bytes of a record of a part of an answer that are its beginning; the rest is its end

_INTERIM = {100, 102, 103}  # RFC 9110, section 15.2: not the answer yet; 101 is

_NAMES: dict[Protocol, ProtocolName] = {
    Protocol.HTTP1: "http",
    Protocol.POSTGRES: "postgresql",
    Protocol.MYSQL: "mysql",
    Protocol.REDIS: "redis",
}


@dataclass(frozen=True)
class Peer:
    """The process that an exchange is seen in."""

    pid: int
    start_time: int
    labels: Labels


@dataclass
class _Open:
    entry: Entry
    call: Call
    process: Peer
    trace_id: int
    span_id: int
    first: bytes = b""
    last: bytes = b""
    answered_ns: int = 0  # when the last part of the answer came; 0: none has


class Exchanges:
    """One conversation is a connection's requests in their order. Requests that were pipelined end together, with the
    last answer before the next request: what belongs to which of them is not looked at.

    Args:
        finish: takes each exchange, its times those of CLOCK_BOOTTIME, and its process.
        bits: the source of ids.

    Attributes:
        lost: exchanges for which there was no room.
    """

    def __init__(self, finish: Callable[[Exchange, Peer], None], bits: random.Random | None = None) -> None:
        self.lost = 0
        self._finish_with = finish
        self._bits = bits or random.SystemRandom()
        self._connections: dict[int, list[_Open]] = {}
        self._open = 0

    def __len__(self) -> int:
        return self._open

    def take(self, entry: Entry, call: Call | None, process: Peer) -> None:
        """A record of a process without a hook: a kept entry with what it asked for, or a part of an answer."""
        if entry.event == Event.ENTRY and call is not None:
            self._begin(entry, call, process)
        elif entry.event == Event.ANSWER:
            self._answer(entry)
        elif entry.event == Event.CLOSED:
            self._end(entry.connection, "connection_closed", entry.time_ns)

    def sweep(self, now_ns: int) -> None:
        """Finish what is complete, and what has waited too long."""
        for connection, open_ in list(self._connections.items()):
            last = open_[-1]
            if last.answered_ns:
                if now_ns - last.answered_ns >= _IDLE_NS:
                    self._end(connection, "answered", now_ns)
            elif now_ns - last.entry.time_ns >= _UNANSWERED_NS:
                self._end(connection, "no_answer_seen", now_ns)

    def exited(self, pid: int, now_ns: int) -> None:
        """A process ended, and all its connections with it."""
        for connection, open_ in list(self._connections.items()):
            if open_[0].process.pid == pid:
                self._end(connection, "process_exited", now_ns)

    def finish_all(self, now_ns: int) -> None:
        for connection in list(self._connections):
            self._end(connection, "no_answer_seen", now_ns)

    def _begin(self, entry: Entry, call: Call, process: Peer) -> None:
        if entry.protocol not in _NAMES or not entry.connection:
            return
        known = self._connections.get(entry.connection)
        if known is not None and known[-1].answered_ns:
            self._end(entry.connection, "answered", entry.time_ns)
            known = None
        if self._open >= _OPEN_MAX:
            self.lost += 1
            return
        if known is None:
            known = self._connections[entry.connection] = []
        trace_id = call.trace_id or self._bits.getrandbits(72) << 56 | entry.randomness & RANDOMNESS_MASK
        known.append(_Open(entry, call, process, trace_id or 1, self._bits.getrandbits(64) or 1))
        self._open += 1

    def _answer(self, entry: Entry) -> None:
        known = self._connections.get(entry.connection)
        if known is None:
            return
        first = entry.request[:_FIRST]
        last = entry.request if entry.size <= len(entry.request) else entry.request[_FIRST:]
        if entry.protocol == Protocol.HTTP1 and (parse_status(first) or 0) in _INTERIM:
            return
        for exchange in known:
            if not exchange.answered_ns:
                exchange.first = first
            exchange.last = last
            exchange.answered_ns = entry.time_ns

    def _end(self, connection: int, end: End, now_ns: int) -> None:
        for open_ in self._connections.pop(connection, ()):
            self._open -= 1
            exchange = _exchange(open_, "answered" if open_.answered_ns else end, open_.answered_ns or now_ns)
            self._finish_with(exchange, open_.process)


def _exchange(open_: _Open, end: End, end_ns: int) -> Exchange:
    entry, call = open_.entry, open_.call
    exchange = Exchange(
        _NAMES[entry.protocol],
        server=entry.protocol == Protocol.HTTP1,
        trace_id=open_.trace_id,
        span_id=open_.span_id,
        start_ns=entry.time_ns,
        end_ns=max(end_ns, entry.time_ns),
        parent_span_id=call.span_id,
        end=end,
        pid=entry.tgid,
        method=call.method,
        path=call.path,
        operation=call.operation.name,
        collection=call.operation.collection,
        query_text=call.operation.text,
    )
    if entry.protocol == Protocol.HTTP1:
        return exchange._replace(status=parse_status(open_.first) if open_.first else None, version="1.1")
    outcome = _outcome(entry.protocol, open_.first, open_.last)
    return exchange._replace(error=outcome.error, error_code=outcome.code)


def _outcome(protocol: Protocol, first: bytes, last: bytes) -> Outcome:
    if protocol == Protocol.POSTGRES:
        return postgres.parse_reply(first, last)
    if protocol == Protocol.MYSQL:
        return mysql.parse_reply(first, last)
    return redis.parse_reply(first)
