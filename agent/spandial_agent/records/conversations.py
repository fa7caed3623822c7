"""What is known of connections: statements that were prepared, header tables. With it a record tells what was asked."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Literal, NamedTuple

from opentelemetry.context import Context
from opentelemetry.trace import get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from spandial import abi
from spandial.abi import EntryKind, Event, Flag, Mode, Parent, Protocol, RecordFlag
from spandial.decision import decide, parse_randomness
from spandial_agent.records.memories import Memories
from spandial_agent.records.protocols import mysql, postgres, redis
from spandial_agent.records.protocols.database import Operation
from spandial_agent.records.protocols.http1 import parse_request_line
from spandial_agent.records.protocols.http2 import HeaderBlocks, Request, Response, read_request, read_response
from spandial_agent.records.record import Entry

__all__ = ["NOBODY", "Call", "Conversations", "kept_by"]

NOBODY = -1  # whose process has ended: not known any more
# Connections of a database, and statements that were prepared on them, each of which may take 1.5 KiB.
_STATEMENTS = 32_768
_HTTP2_CONNECTIONS = 1024  # two full header tables are 29 KiB; the largest that anybody can make, 70 KiB
_PROPAGATOR = TraceContextTextMapPropagator()


class Call(NamedTuple):
    """What a kept entry, or a kept call that the process sent, asked for."""

    protocol: Protocol
    method: str = ""  # HTTP's
    path: str = ""
    path_known: bool = True  # an empty path means that there is none
    authority: str = ""  # HTTP/2's
    scheme: str = ""
    service: str = ""  # gRPC's, with its package
    rpc_method: str = ""
    operation: Operation = Operation()  # a database's
    trace_id: int = 0  # 0: no trace context
    span_id: int = 0  # of the remote parent
    parent: Parent = Parent.NONE
    kept_by: Literal["rate", "parent"] = "rate"


def kept_by(word: int, randomness: int, parent: Parent) -> Literal["rate", "parent"]:
    """Whether a kept entry owes it to its parent."""
    hit = randomness >= abi.threshold_of(word)
    boosted = hit and word & abi.MODE_MASK == Mode.BOOST
    thin_or_strict = word & Flag.THIN or word & abi.MODE_MASK == Mode.STRICT
    if parent == Parent.LOCAL_KEPT:
        return "rate" if word & Flag.THIN else "parent"
    return "parent" if parent == Parent.REMOTE_KEPT and not (thin_or_strict or boosted) else "rate"


class _MySQL:
    def __init__(self) -> None:
        self.statements = mysql.Statements()
        self.prepare: Entry | None = None


class _HTTP2:
    def __init__(self) -> None:
        self.requests: HeaderBlocks | None = None
        self.responses: HeaderBlocks | None = None


class Conversations:
    """Reads records in the order in which the kernel emitted them. Never raises, whatever they hold. What is remembered
    of connections is shared by the users whose they are.

    Args:
        word_of: the rate word that a rule by operation has, by the entry's row, kind, method and path; None where there
            is no such rule.
    """

    def __init__(self, word_of: Callable[[int, EntryKind, str, str], int | None] = lambda *_: None) -> None:
        self._word_of = word_of
        self._postgres = Memories[postgres.Statements](_STATEMENTS)
        self._mysql = Memories[_MySQL](_STATEMENTS)
        self._http2 = Memories[_HTTP2](_HTTP2_CONNECTIONS)

    @property
    def forgotten(self) -> int:
        """How many connections were forgotten because there were too many."""
        return sum(memories.forgotten for memories in (self._postgres, self._mysql, self._http2))

    def forget(self, connections: Collection[int] | None = None) -> None:
        """Records were lost, of these connections or of any: what they would have changed is not known."""
        for memories in (self._postgres, self._mysql, self._http2):
            if connections is None:
                memories.clear()
            else:
                memories.drop(connections)

    def read(self, entry: Entry, uid: int = NOBODY) -> Call | Response | None:
        """What a kept entry asked for, or what a header block of an answer says; None for a record of something else,
        or of an entry that is dropped now.

        Args:
            uid: the user whose process it is.
        """
        if entry.event == Event.ANSWER and entry.protocol == Protocol.HTTP2:
            return self._read_response(entry, uid)
        if entry.event in (Event.ANSWER, Event.CLOSED, Event.CONNECTION):
            return None
        if entry.protocol == Protocol.HTTP1:
            method, path = parse_request_line(entry.request)
            return _call(entry, method, path)
        if entry.protocol == Protocol.HTTP2:
            return self._read_http2(entry, uid)
        operation = self._read_operation(entry, uid)
        return _call(entry)._replace(operation=operation) if operation is not None else None

    def _read_http2(self, entry: Entry, uid: int) -> Call | None:
        memory = self._http2.get(entry.connection) or self._http2.put(entry.connection, _HTTP2(), uid)
        memory.requests = _in_step(memory.requests, entry)
        headers = memory.requests.decode(entry.request, cut=bool(entry.flags & RecordFlag.CUT))
        if entry.event != Event.ENTRY:
            return None
        request = read_request(headers)
        call = self._decide(entry, request) if entry.flags & RecordFlag.UNDECIDED else _call(entry)
        if call is None:
            return None
        return call._replace(
            method=request.method,
            path=request.path,
            path_known=request.path_known,
            authority=request.authority,
            scheme=request.scheme,
            service=request.service,
            rpc_method=request.rpc_method,
        )

    def _decide(self, entry: Entry, request: Request) -> Call | None:
        """The kernel could not read the trace context, or a path that rules are about: decide as it would have."""
        if entry.word & Flag.OPERATIONS and request.path_known:
            word = self._word_of(entry.row, entry.kind, request.method, request.path)
            if word is not None and word & Flag.VALID:
                entry = entry._replace(word=word)
        return _decided(entry, request)

    def _read_response(self, entry: Entry, uid: int) -> Response | None:
        if entry.flags & RecordFlag.RESET or not entry.request:
            return None
        memory = self._http2.get(entry.connection) or self._http2.put(entry.connection, _HTTP2(), uid)
        memory.responses = _in_step(memory.responses, entry)
        return read_response(memory.responses.decode(entry.request, cut=bool(entry.flags & RecordFlag.CUT)))

    def _read_operation(self, entry: Entry, uid: int) -> Operation | None:
        cut = bool(entry.flags & RecordFlag.CUT)
        if entry.protocol == Protocol.REDIS:
            return redis.parse_command(entry.request)
        if entry.protocol == Protocol.POSTGRES:
            statements = self._postgres.get(entry.connection)
            if statements is None:
                statements = self._postgres.put(entry.connection, postgres.Statements(), uid)
            if entry.event == Event.PREPARE:
                statements.remember(entry.request)
            elif entry.event == Event.SESSION:
                statements.begin(entry.request, cut)
            operation = statements.operation(entry.request) if entry.event == Event.ENTRY else None
            self._postgres.weigh(entry.connection, 1 + len(statements))
            return _within(operation, statements.namespace) if operation is not None else None
        if entry.protocol != Protocol.MYSQL:
            return None
        memory = self._mysql.get(entry.connection) or self._mysql.put(entry.connection, _MySQL(), uid)
        if entry.event == Event.PREPARE:
            memory.prepare = entry
        elif entry.event == Event.REPLY and memory.prepare is not None:
            prepare, memory.prepare = memory.prepare, None
            memory.statements.remember(prepare.request, entry.request, bool(prepare.flags & RecordFlag.CUT))
            self._mysql.weigh(entry.connection, 1 + len(memory.statements))
        elif entry.event == Event.FORGET:
            memory.statements.forget(entry.request)
            self._mysql.weigh(entry.connection, 1 + len(memory.statements))
        elif entry.event == Event.SESSION:
            memory.statements.name(entry.request, cut)
        if entry.event != Event.ENTRY:
            return None
        operation = memory.statements.operation(entry.request, cut)
        return _within(operation, memory.statements.namespace)


def _within(operation: Operation, namespace: str) -> Operation:
    return operation._replace(namespace=namespace) if namespace else operation


def _in_step(blocks: HeaderBlocks | None, entry: Entry) -> HeaderBlocks:
    """One direction's header blocks, as they are known before the record's."""
    if blocks is None or entry.flags & RecordFlag.FRESH:
        return HeaderBlocks(fresh=bool(entry.flags & RecordFlag.FRESH))
    if entry.flags & RecordFlag.GAP:
        blocks.skip(None)
    return blocks


def _call(entry: Entry, method: str = "", path: str = "") -> Call:
    return Call(
        entry.protocol,
        method,
        path,
        trace_id=entry.trace_id,
        span_id=entry.span_id,
        parent=entry.parent,
        kept_by=kept_by(entry.word, entry.randomness, entry.parent),
    )


def _decided(entry: Entry, request: Request) -> Call | None:
    """Decide by the trace context as user space reads it; by what the kernel read where it knows nothing more."""
    carrier = {"traceparent": request.traceparent, "tracestate": request.tracestate}
    context = get_current_span(_PROPAGATOR.extract(carrier, Context())).get_span_context()
    trace_id, span_id, parent, randomness = entry.trace_id, entry.span_id, entry.parent, entry.randomness
    if context.is_valid:
        trace_id, span_id = context.trace_id, context.span_id
        parent = Parent.REMOTE_KEPT if context.trace_flags.sampled else Parent.REMOTE_DROPPED
        explicit = parse_randomness(context.trace_state.get("ot", ""))
        randomness = context.trace_id & abi.RANDOMNESS_MASK if explicit is None else explicit
    if not decide(entry.word, randomness, parent):
        return None
    return Call(
        entry.protocol,
        trace_id=trace_id,
        span_id=span_id,
        parent=parent,
        kept_by=kept_by(entry.word, randomness, parent),
    )
