"""The dial: one change of the rules at a time, obeyed at once, and on disk before it is answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from spandial_api.node import Node
from spandial_api.rules import Rule, RuleBook
from spandial_api.selectors import Selector
from spandial_api.store import Store, StoreError

__all__ = ["ANY_REVISION", "Control", "Expected", "RevisionConflict"]


Expected = Callable[[int], bool]
"""Whether the rules of a revision are those that a change was meant for."""

ANY_REVISION: Expected = lambda revision: True  # noqa: E731

_CLOCK_S = 1.0  # the clock may be set, and stands still for a timer while the host sleeps


class RevisionConflict(Exception):
    """The rules are not those that a change was meant for. Nothing was changed."""


class Control:
    """Rules, store and node together.

    Args:
        now: Unix time in seconds.

    Attributes:
        book: the rules in force. What ended while nobody looked is not in it.
    """

    def __init__(self, store: Store, node: Node, now: Callable[[], float] = time.time) -> None:
        self.book = store.load().without_expired(now())
        self.now = now
        self._store = store
        self._node = node
        self._lock = asyncio.Lock()
        self._changed = asyncio.Event()
        node.apply(self.book)

    async def run(self) -> None:
        """End each rule when its time has come, until cancelled."""
        while True:
            self._changed.clear()
            expiry = self.book.next_expiry
            left = None if expiry is None else min(max(expiry - self.now(), 0), _CLOCK_S)
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait(), left)
            await self._expire()

    async def put(self, rule: Rule, expected: Expected = ANY_REVISION) -> tuple[Rule, int]:
        """Upsert a rule; the rule as stored, and how many targets it reaches. Raises RevisionConflict, StoreError,
        nothing changed."""
        book = await self._change(lambda book: book.put(rule), expected)
        return book.rules[rule.selector], self._node.reached_by(rule.selector)

    async def remove(self, selector: Selector, expected: Expected = ANY_REVISION) -> int:
        """Remove a rule; the new revision. Raises KeyError, RevisionConflict, StoreError, nothing changed."""
        return (await self._change(lambda book: book.remove(selector), expected)).revision

    async def renew(self, selector: Selector, ttl_s: float, expected: Expected = ANY_REVISION) -> tuple[Rule, int]:
        """Have a rule end so long from now, as `put`. Raises KeyError, RevisionConflict, StoreError, nothing
        changed."""
        book = await self._change(lambda book: book.renew(selector, self.now() + ttl_s), expected)
        return book.rules[selector], self._node.reached_by(selector)

    def reached(self) -> dict[Selector, int]:
        """For every rule, how many targets have at least one kind of entry under it."""
        counts = self._node.reached()
        return {selector: counts.get(selector, 0) for selector in self.book.rules}

    async def _change(self, change: Callable[[RuleBook], RuleBook], expected: Expected) -> RuleBook:
        # A caller who goes away does not stop a change half-way: what is obeyed must be on disk.
        return await asyncio.shield(self._commit(change, expected))

    async def _commit(self, change: Callable[[RuleBook], RuleBook], expected: Expected) -> RuleBook:
        async with self._lock:
            if not expected(self.book.revision):
                raise RevisionConflict
            book = change(self.book)
            # The disk may be slow; the node goes on meanwhile. What no disk would take is found out first.
            await asyncio.to_thread(self._store.prepare, book)
            self._node.apply(book)
            try:
                await asyncio.to_thread(self._store.commit)
            except BaseException:
                self._node.apply(self.book)
                raise
            self.book = book
            self._changed.set()
            return book

    async def _expire(self) -> None:
        async with self._lock:
            book = self.book.without_expired(self.now())
            if book is self.book:
                return
            self._node.apply(book)
            self.book = book
            with suppress(StoreError):  # whatever the disk says: what has ended is not loaded again either
                await asyncio.to_thread(self._store.save, book)
