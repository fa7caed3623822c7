"""Pair kept entries and calls with their answers. Pure: time comes with the records."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping

from spandial.abi import RANDOMNESS_MASK, Event, Protocol, RecordFlag
from spandial_agent.processes.crowd import Crowded, SharedMap
from spandial_agent.records.conversations import Call
from spandial_agent.records.protocols.http1 import parse_status
from spandial_agent.records.protocols.http2 import Response
from spandial_agent.records.record import Entry
from spandial_agent.spans.open_exchange import (
    PROTOCOL_NAMES,
    Addresses,
    OpenExchange,
    Peer,
    addresses_of,
    exchange_of,
)
from spandial_agent.spans.record import End, Exchange

__all__ = ["Exchanges", "Peer"]

_OPEN_MAX = 20_000  # exchanges that wait for their answers
_UNANSWERED_MAX = 512  # of those on one connection, where they are answered in their order
_ADDRESSES_MAX = 16_384  # connections whose ends are known
_IDLE_NS = 1_000_000_000  # an answer of which no more has come for so long is complete
_UNANSWERED_NS = 300_000_000_000
_STREAM_NS = 3_600_000_000_000  # an HTTP/2 stream that has been answered may go on for so long
_FIRST = 128  # bytes of a record of a part of an answer that are its beginning; the rest is its end

_INTERIM = {100, 102, 103}  # RFC 9110, section 15.2: not the answer yet; 101 is

_NOWHERE = Addresses()


class Exchanges:
    """One conversation is a connection's requests in their order, or a stream of HTTP/2. Requests that were pipelined
    end together, with the last answer before the next request: what belongs to which of them is not looked at.

    Where there is no room for one more, the user with most open exchanges loses the oldest of his; of requests that one
    connection has not answered, the oldest goes before there are very many.

    Args:
        finish: takes each exchange, its times those of CLOCK_BOOTTIME, and its process.
        bits: the source of ids.

    Attributes:
        lost: exchanges for which there was no room.
        crowded, unanswered: say whose they were.
    """

    def __init__(self, finish: Callable[[Exchange, Peer], None], bits: random.Random | None = None) -> None:
        self.lost = 0
        self.crowded = Crowded("open exchanges", _OPEN_MAX)
        self.unanswered = Crowded("requests that their connection had not answered", _UNANSWERED_MAX)
        self._finish_with = finish
        self._bits = bits or random.Random(os.urandom(32))  # the system's own takes microseconds for each
        self._connections: dict[int, list[OpenExchange]] = {}
        self._streams: dict[int, dict[int, OpenExchange]] = {}
        self._addresses: SharedMap[int, Addresses] = SharedMap(_ADDRESSES_MAX)
        self._open: SharedMap[OpenExchange, None] = SharedMap(_OPEN_MAX, self._give_up)

    def __len__(self) -> int:
        return len(self._open)

    def take(self, entry: Entry, said: Call | Response | None, process: Peer) -> bool:
        """A record of a process without a hook, and what it says: a kept entry or call, or a part of an answer.

        Returns False for a call that no exchange can be made of: its connection is not followed.
        """
        if entry.event == Event.ENTRY and isinstance(said, Call):
            if entry.protocol not in PROTOCOL_NAMES or not entry.connection:
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
            self._addresses.put(process.uid, entry.connection, addresses_of(entry.request))
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

    def exited(self, ended: Mapping[int, int]) -> None:
        """Processes ended (when, by pid), and all their connections with them. All that is open is looked at: tell it
        of many at once."""
        for connection, open_ in list(self._connections.items()):
            if (at_ns := ended.get(open_[0].process.pid)) is not None:
                self._close(connection, "process_exited", at_ns)
        for connection, streams in list(self._streams.items()):
            if (at_ns := ended.get(next(iter(streams.values())).process.pid)) is not None:
                self._close(connection, "process_exited", at_ns)

    def finish_all(self, now_ns: int) -> None:
        for connection in [*self._connections, *self._streams]:
            self._close(connection, "no_answer_seen", now_ns)

    def _begin(self, entry: Entry, call: Call, process: Peer) -> None:
        known = self._connections.get(entry.connection)
        if known is not None and known[-1].answered_ns:
            self._end(entry.connection, "answered", entry.time_ns)
        if entry.protocol == Protocol.HTTP2 and entry.stream in self._streams.get(entry.connection, ()):
            self._end_stream(entry.connection, entry.stream, "no_answer_seen", entry.time_ns)
        served = self._connections.get(entry.serving)
        if served is not None and call.trace_id in (0, served[-1].trace_id):
            trace_id, parent_span_id = served[-1].trace_id, served[-1].span_id
        else:
            trace_id, parent_span_id = call.trace_id or self._new_trace_id(entry), call.span_id
        exchange = OpenExchange(entry, call, process, trace_id, self._bits.getrandbits(64) or 1, parent_span_id)
        self._open.put(process.uid, exchange, None)
        if entry.protocol == Protocol.HTTP2:
            self._streams.setdefault(entry.connection, {})[entry.stream] = exchange
            return
        waiting = self._connections.setdefault(entry.connection, [])
        waiting.append(exchange)
        if len(waiting) > _UNANSWERED_MAX:
            oldest = waiting[0]
            self.unanswered.lose(oldest.process.uid, _UNANSWERED_MAX)
            self._open.pop(oldest)
            self._forget(oldest)

    def _give_up(self, exchange: OpenExchange, _value: None, uid: int, held: int) -> None:
        self.crowded.lose(uid, held)
        self._forget(exchange)

    def _forget(self, exchange: OpenExchange) -> None:
        """No span will be made of one that is open."""
        self.lost += 1
        connection = exchange.entry.connection
        if exchange.entry.protocol == Protocol.HTTP2:
            self._forget_stream(connection, exchange.entry.stream)
            return
        waiting = self._connections.get(connection, [])
        if exchange in waiting:
            waiting.remove(exchange)
        if not waiting:
            self._connections.pop(connection, None)
            return
        last = waiting[-1]
        last.pipelined = True
        if not last.answered_ns:
            last.take_answer_of(exchange)

    def _new_trace_id(self, entry: Entry) -> int:
        """One by which everyone downstream decides as the kernel did."""
        return (self._bits.getrandbits(72) << 56 | entry.randomness & RANDOMNESS_MASK) or 1

    def _answer(self, entry: Entry) -> None:
        """What is known of it, the last of those that wait remembers for all."""
        known = self._connections.get(entry.connection)
        if known is None:
            return
        last_asked = known[-1]
        last_asked.body += entry.body
        first = entry.request[:_FIRST]
        last = entry.request if entry.size <= len(entry.request) else entry.request[_FIRST:]
        if first[9:10] == b"1" and entry.protocol == Protocol.HTTP1 and (parse_status(first) or 0) in _INTERIM:
            return
        if not last_asked.answered_ns:
            last_asked.first = first
        last_asked.last = last
        last_asked.answered_ns = entry.time_ns
        last_asked.answer_bytes += entry.size

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
            self._addresses.pop(connection)

    def _end(self, connection: int, end: End, now_ns: int) -> None:
        pipelined = self._connections.pop(connection, ())
        if not pipelined:
            return
        last = pipelined[-1]
        alone = len(pipelined) == 1 and not last.pipelined
        for open_ in pipelined:
            if open_ is not last:
                open_.take_answer_of(last)
            end_ns = open_.answered_ns or now_ns
            self._finish(open_, "answered" if open_.answered_ns else end, end_ns, alone=alone)

    def _end_stream(self, connection: int, stream: int, end: End, now_ns: int) -> None:
        open_ = self._forget_stream(connection, stream)
        if open_ is not None:
            self._finish(open_, end, now_ns, alone=True)

    def _forget_stream(self, connection: int, stream: int) -> OpenExchange | None:
        streams = self._streams.get(connection, {})
        open_ = streams.pop(stream, None)
        if not streams:
            self._streams.pop(connection, None)
        return open_

    def _finish(self, open_: OpenExchange, end: End, end_ns: int, *, alone: bool) -> None:
        self._open.pop(open_)
        addresses = self._addresses.get(open_.entry.connection) or _NOWHERE
        self._finish_with(exchange_of(open_, addresses, end, end_ns, alone), open_.process)
