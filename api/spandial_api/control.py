"""The dial: one change of the rules at a time, obeyed at once, and on disk before it is answered."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

from spandial_api.node import Node
from spandial_api.rules import Rule, RuleBook, Selector
from spandial_api.store import Store

__all__ = ["Control", "selector_text"]


def selector_text(selector: Selector) -> str:
    """A selector as people write it: `service=checkout env=gray`, or `default`. No two selectors have the same text."""
    fields = [
        f"{name}={_quoted(value)}"
        for name in ("service", "version", "env", "protocol")
        if (value := getattr(selector, name)) is not None
    ]
    return " ".join(fields) or "default"


def _quoted(value: str) -> str:
    return value if value.isprintable() and not {" ", '"'} & set(value) else json.dumps(value)


class Control:
    """Rules, store and node together.

    Attributes:
        book: the rules in force.
    """

    def __init__(self, store: Store, node: Node) -> None:
        self.book = store.load()
        self._store = store
        self._node = node
        self._lock = asyncio.Lock()
        node.apply(self.book)

    async def put(self, rule: Rule) -> tuple[Rule, int]:
        """Upsert a rule; the rule as stored, and how many targets it reaches. Raises StoreError, nothing changed."""
        book = await self._change(lambda book: book.put(rule))
        return book.rules[rule.selector], self.reached().get(rule.selector, 0)

    async def remove(self, selector: Selector) -> int:
        """Remove a rule; the new revision. Raises KeyError, StoreError, nothing changed."""
        return (await self._change(lambda book: book.remove(selector))).revision

    def reached(self) -> dict[Selector, int]:
        """For every rule, how many targets have at least one kind of entry under it."""
        counts = self._node.reached()
        return {selector: counts.get(selector, 0) for selector in self.book.rules}

    async def _change(self, change: Callable[[RuleBook], RuleBook]) -> RuleBook:
        # A caller who goes away does not stop a change half-way: what is obeyed must be on disk.
        return await asyncio.shield(self._commit(change))

    async def _commit(self, change: Callable[[RuleBook], RuleBook]) -> RuleBook:
        async with self._lock:
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
            return book
