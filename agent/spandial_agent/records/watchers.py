"""Those who watch kept entries."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from fnmatch import fnmatchcase

from spandial.labels import Labels
from spandial_api.node_states import EntryEvent

__all__ = ["Watchers"]

_QUEUE = 8192  # entries that a watcher may be behind


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
