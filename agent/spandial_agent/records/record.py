"""Records of the ring buffer as entries. Pure."""

from __future__ import annotations

import struct
from typing import NamedTuple

from spandial import abi
from spandial.abi import EntryKind, Event, Parent, Protocol, RecordFlag

__all__ = ["Entry", "connection_of", "decode_entry", "is_entry", "tgid_of"]

# A member's value is its index.
_EVENT_AT = struct.calcsize("=8QIIBBB")  # in abi.ENTRY
_TGID = struct.Struct("=64xI")
_CONNECTION = struct.Struct("=48xQ")
_KINDS, _PARENTS, _PROTOCOLS, _EVENTS = tuple(EntryKind), tuple(Parent), tuple(Protocol), tuple(Event)


class Entry(NamedTuple):
    """One kept entry as the kernel emitted it."""

    time_ns: int  # CLOCK_BOOTTIME
    tgid: int
    row: int
    kind: EntryKind
    protocol: Protocol
    event: Event
    connection: int  # drawn for each connection that is followed; 0: none is
    serving: int  # the connection whose request the same thread is serving; 0: none is known
    stream: int  # of the connection (HTTP/2)
    flags: int  # of RecordFlag
    size: int  # bytes of the whole message; an answer's end (HTTP/2): of its body, or BODY_UNKNOWN
    body: int  # an answer's: bytes of the request that came behind the entry's message, or its body (HTTP/2)
    request: bytes  # its beginning
    trace_id: int  # 0: no trace context
    span_id: int
    randomness: int
    parent: Parent
    word: int  # the rate word that was obeyed

    @property
    def entered(self) -> bool:
        """Whether this is an entry: a request received, or a statement sent to a database; not a call sent."""
        return self.kind == EntryKind.DB or not self.flags & RecordFlag.SENT


def is_entry(record: bytes) -> bool:
    """Whether an undecoded record is a kept entry or call, and not part of an answer or what else is handed over."""
    return len(record) >= abi.ENTRY.size and record[_EVENT_AT] == Event.ENTRY


def tgid_of(record: bytes) -> int:
    """The process that an undecoded record is of; 0 for one that is too short."""
    return int(_TGID.unpack_from(record)[0]) if len(record) >= abi.ENTRY.size else 0


def connection_of(record: bytes) -> int:
    """The connection that an undecoded record is of; 0: none."""
    return int(_CONNECTION.unpack_from(record)[0]) if len(record) >= abi.ENTRY.size else 0


def decode_entry(record: bytes) -> Entry:
    """A record of the ring buffer (struct spandial_entry). Raises ValueError for one that is too short."""
    if len(record) < abi.ENTRY.size:
        raise ValueError(f"an entry has at least {abi.ENTRY.size} bytes, not {len(record)}")
    time_ns, high, low, span_id, randomness, word, connection, serving, tgid, row, *rest = abi.ENTRY.unpack_from(record)
    kind, parent, protocol, event, stream, length, flags, size, body = rest
    try:  # by index: to make a member of its value takes several times as long
        kind, parent, protocol, event = _KINDS[kind], _PARENTS[parent], _PROTOCOLS[protocol], _EVENTS[event]
    except IndexError:
        raise ValueError(f"no entry is of kind {kind}, parent {parent}, protocol {protocol}, event {event}") from None
    return Entry(
        time_ns=time_ns,
        tgid=tgid,
        row=row,
        kind=kind,
        protocol=protocol,
        event=event,
        connection=connection,
        serving=serving,
        stream=stream,
        flags=flags,
        size=size,
        body=body,
        request=record[abi.ENTRY.size : abi.ENTRY.size + length],
        trace_id=high << 64 | low,
        span_id=span_id,
        randomness=randomness,
        parent=parent,
        word=word,
    )
