"""Records of the ring buffer as entries, and whoever watches them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from fnmatch import fnmatchcase
from typing import NamedTuple

from spandial import abi
from spandial.abi import EntryKind, Event, Parent, Protocol, RecordFlag
from spandial.labels import Labels
from spandial_api.node import EntryEvent

__all__ = ["Entry", "Watchers", "decode_entry"]

_QUEUE = 8192  # entries that a watcher may be behind


# A member's value is its index.
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


class _Watcher:
    def __init__(self, service: str, env: str) -> None:
        self._service = service
        self._env = env
        self.queue: deque[EntryEvent] = deque()
        self.lost = 0
        self.ready = asyncio.Event()
        self.ended = False

    def wants(self, service: str, env: str) -> bool:
        return fnmatchcase(service, self._service) and fnmatchcase(env, self._env)

    def offer(self, event: EntryEvent) -> bool:
        if len(self.queue) >= _QUEUE:
            self.lost += 1
            return False
        if self.lost:
            event, self.lost = event.model_copy(update={"lost": self.lost}), 0
        self.queue.append(event)
        self.ready.set()
        return True

    def end(self) -> None:
        self.ended = True
        self.ready.set()

    async def events(self) -> AsyncIterator[EntryEvent]:
        while True:
            await self.ready.wait()
            while self.queue:
                yield self.queue.popleft()
            if self.ended:
                return
            self.ready.clear()


class Watchers:
    """Who wants entries. Lives on the event loop's thread.

    Args:
        on_change: called when a watcher came or went: `wants` may answer differently now.

    Attributes:
        lost: entries that a watcher was too slow for.
    """

    def __init__(self, on_change: Callable[[], None]) -> None:
        self.lost = 0
        self._on_change = on_change
        self._watchers: set[_Watcher] = set()
        self._ended = False

    @asynccontextmanager
    async def watch(self, service: str, env: str) -> AsyncIterator[AsyncIterator[EntryEvent]]:
        """The entries from now on of the services and environments that match these globs."""
        watcher = _Watcher(service, env)
        self._watchers.add(watcher)
        if self._ended:
            watcher.end()
        self._on_change()
        try:
            yield watcher.events()
        finally:
            self._watchers.discard(watcher)
            self._on_change()

    def __len__(self) -> int:
        return len(self._watchers)

    def wants(self, labels: Labels) -> bool:
        """Whether anybody watches a process with these labels."""
        return any(watcher.wants(labels.service, labels.env) for watcher in self._watchers)

    def end(self) -> None:
        """No entries come any more: every watcher's stream ends."""
        self._ended = True
        for watcher in self._watchers:
            watcher.end()

    def offer(self, event: EntryEvent) -> None:
        for watcher in self._watchers:
            if watcher.wants(event.service, event.env) and not watcher.offer(event):
                self.lost += 1
