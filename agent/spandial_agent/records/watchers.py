"""Those who watch kept entries."""

from __future__ import annotations

import asyncio
import math
import re
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from fnmatch import translate

from spandial.labels import Labels
from spandial_api.node_states import EntryEvent

__all__ = ["Watchers"]

_QUEUE = 8192  # entries that a watcher may be behind
_QUEUES = 32_768  # ... all of them together
_PAUSE_S = 0.2


class _Watcher:
    def __init__(self, service: str, env: str) -> None:
        self._service = re.compile(translate(service)).match  # fnmatch remembers few patterns
        self._env = re.compile(translate(env)).match
        self.queue: deque[EntryEvent] = deque()
        self.lost = 0
        self.ready = asyncio.Event()
        self.ended = False

    def wants(self, service: str, env: str) -> bool:
        return self._service(service) is not None and self._env(env) is not None

    def offer(self, event: EntryEvent, most: int) -> bool:
        if len(self.queue) >= most:
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
        pause_s: it is called no more often; a watcher that comes waits for it.

    Attributes:
        lost: entries that a watcher was too slow for.
    """

    def __init__(self, on_change: Callable[[], None], pause_s: float = _PAUSE_S) -> None:
        self.lost = 0
        self._on_change = on_change
        self._pause_s = pause_s
        self._told_at = -math.inf
        self._to_be_told: asyncio.Future[None] | None = None
        self._watchers: set[_Watcher] = set()
        self._ended = False

    @asynccontextmanager
    async def watch(self, service: str, env: str) -> AsyncIterator[AsyncIterator[EntryEvent]]:
        """The entries from now on of the services and environments that match these globs."""
        watcher = _Watcher(service, env)
        self._watchers.add(watcher)
        if self._ended:
            watcher.end()
        try:
            if (told := self._changed()) is not None:
                await asyncio.shield(told)
            yield watcher.events()
        finally:
            self._watchers.discard(watcher)
            self._changed()

    def _changed(self) -> asyncio.Future[None] | None:
        """Tell of a change, now or when the pause is over; then what is done by then."""
        if self._to_be_told is None:
            loop = asyncio.get_running_loop()
            wait = self._told_at + self._pause_s - loop.time()
            if wait <= 0:
                self._tell()
            else:
                self._to_be_told = loop.create_future()
                loop.call_later(wait, self._tell)
        return self._to_be_told

    def _tell(self) -> None:
        told, self._to_be_told = self._to_be_told, None
        self._told_at = asyncio.get_running_loop().time()
        try:
            if not self._ended:  # else the rows may be gone already
                self._on_change()
        finally:
            if told is not None:
                told.set_result(None)

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

    def shed(self) -> None:
        """End every stream that there is now, without what waits in it: for the memory."""
        for watcher in self._watchers:
            self.lost += len(watcher.queue)
            watcher.queue.clear()
            watcher.end()

    def offer(self, event: EntryEvent) -> None:
        most = min(_QUEUE, _QUEUES // max(len(self._watchers), 1))
        for watcher in self._watchers:
            if watcher.wants(event.service, event.env) and not watcher.offer(event, most):
                self.lost += 1
