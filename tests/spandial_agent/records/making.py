"""Records of the ring buffer as the kernel writes them."""

from __future__ import annotations

from spandial import abi
from spandial.abi import EntryKind, Event, Parent, Protocol, RecordFlag, encode_word

__all__ = ["record"]


def record(
    request: bytes = b"GET / HTTP/1.1\r\n",
    *,
    tgid: int = 4711,
    time_ns: int = 1_000_000_000,
    trace_id: int = 0,
    span_id: int = 0,
    word: int = encode_word(100),
    randomness: int = 0,
    kind: int = EntryKind.HTTP,
    parent: int = Parent.NONE,
    protocol: int = Protocol.HTTP1,
    event: int = Event.ENTRY,
    connection: int = 0,
    serving: int = 0,
    stream: int = 0,
    flags: int = 0,
    size: int = 0,
    body: int = 0,
) -> bytes:
    """One struct spandial_entry, with more behind the request."""
    if kind == EntryKind.DB and event == Event.ENTRY:
        flags |= RecordFlag.SENT
    high, low = trace_id >> 64, trace_id & (1 << 64) - 1
    ids = (time_ns, high, low, span_id, randomness, word, connection, serving, tgid, 2)
    return (
        abi.ENTRY.pack(*ids, kind, parent, protocol, event, stream, len(request), flags, size, body)
        + request
        + b"\xee" * 100
    )
