"""The dial: one change of the rules at a time, obeyed at once, and on disk before it is answered."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from spandial_api.audit import Action, Change, Entry, LimitChange, UndoConflict, changes_of, effective, undoing
from spandial_api.clock import RunClock
from spandial_api.last_good import LastGoodRules
from spandial_api.node import Node
from spandial_api.rules import Rule, RuleBook
from spandial_api.selectors import Selector
from spandial_api.store import Store, StoreError

__all__ = ["ANY_REVISION", "RULES_MAX", "Author", "Control", "Expected", "RevisionConflict", "Stored", "TooManyRules"]


Expected = Callable[[int], bool]
"""Whether the rules of a revision are those that a change was meant for."""

_T = TypeVar("_T")

ANY_REVISION: Expected = lambda revision: True  # noqa: E731

RULES_MAX = 10_000
_CLOCK_S = 1.0  # the clock may be set, and stands still for a timer while the host sleeps
_COPY_S = 5.0  # how often the copy follows the rules, at most


class RevisionConflict(Exception):
    """The rules are not those that a change was meant for. Nothing was changed."""


class TooManyRules(Exception):
    """There are as many rules as there may be. Nothing was changed."""


class Author(NamedTuple):
    """Who changes something, and what they say why."""

    who: str
    why: str = ""


class Stored(NamedTuple):
    """A rule as it is stored.

    Attributes:
        reached: how many targets have at least one kind of entry under it.
        revision: of all rules, as they were then.
    """

    rule: Rule
    reached: int
    revision: int


class Control:
    """Rules, store and node together.

    Args:
        now: Unix time in seconds; by default that of a clock that nobody sets.
        copy: where the rules are kept a second time.

    Attributes:
        book: the rules in force. What ended while nobody looked is not in it.
        trouble: why the store takes no change; empty where it does.
        damage: what was lost or could not be read at the start, one sentence each.
    """

    def __init__(
        self,
        store: Store,
        node: Node,
        now: Callable[[], float] | None = None,
        copy: LastGoodRules | None = None,
        clock: RunClock | None = None,
    ) -> None:
        self.book = store.load()
        self._clock = clock or RunClock()
        self.now = now or self._clock.now
        self.trouble = ""
        self.damage = store.damage
        self._store = store
        self._node = node
        self._copy = copy
        self._copied: RuleBook | None = None
        self._obeyed = RuleBook()
        self._copy_at = self._probe_at = 0.0
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="audit")
        self._lock = asyncio.Lock()
        self._changed = asyncio.Event()
        self._unwritten: list[Entry] = []  # rules that ended while the disk took nothing
        self._turned = asyncio.Event()
        self._end_expired()
        self._obey(self.book)
        with suppress(StoreError):
            self._check(store.probe)

    async def run(self) -> None:
        """End each rule when its time has come, until cancelled. Keeps the copy, too, and sees when a disk is well
        again."""
        await asyncio.gather(self._end_in_time(), self._keep_up())

    async def _end_in_time(self) -> None:
        """No rule outlives its time because a change of the rules waits for a disk."""
        while True:
            self._turned.clear()
            expiry = self._obeyed.next_expiry
            left = None if expiry is None else min(max(expiry - self.now(), 0), _CLOCK_S)
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._turned.wait(), left)
            if self._lock.locked():  # whoever holds it says by and by which book this ended in
                self._obey(self._obeyed.without_expired(self.now()))
            elif self._end_expired():
                self._obey(self.book)
                self._changed.set()

    async def _keep_up(self) -> None:
        while True:
            self._changed.clear()
            expiry = self.book.next_expiry
            left = _CLOCK_S if expiry is None else min(max(expiry - self.now(), 0), _CLOCK_S)
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait(), left)
            await self._expire()
            await self._mend()

    async def put(self, rule: Rule, author: Author, expected: Expected = ANY_REVISION) -> Stored:
        """Upsert a rule. One that is already there as it is to be is left as it is. Raises RevisionConflict,
        TooManyRules, StoreError, nothing changed."""
        book, _ = await self._change(lambda _: Change("put", (rule,)), author, expected)
        return Stored(book.rules[rule.selector], self._reached_by(rule.selector), book.revision)

    async def remove(self, selector: Selector, author: Author, expected: Expected = ANY_REVISION) -> int:
        """Remove a rule; the new revision. Raises KeyError, RevisionConflict, StoreError, nothing changed."""
        book, _ = await self._change(lambda _: Change("remove", (), (selector,)), author, expected)
        return book.revision

    async def renew(
        self, selector: Selector, ttl_s: float, author: Author, expected: Expected = ANY_REVISION
    ) -> Stored:
        """Have a rule end so long from now, as `put`. Raises KeyError, RevisionConflict, StoreError, nothing
        changed."""

        def change(book: RuleBook) -> Change:
            return Change("renew", (replace(book.rules[selector], expires=self.now() + ttl_s),))

        book, _ = await self._change(change, author, expected)
        return Stored(book.rules[selector], self._reached_by(selector), book.revision)

    async def batch(
        self, put: Sequence[Rule], removed: Sequence[Selector], author: Author, expected: Expected = ANY_REVISION
    ) -> tuple[RuleBook, dict[Selector, int]]:
        """Remove and put rules under one revision; the rules, and how many targets those that were put reach. Raises
        KeyError, RevisionConflict, TooManyRules, StoreError, nothing changed."""
        book, _ = await self._change(lambda _: Change("batch", tuple(put), tuple(removed)), author, expected)
        return book, {rule.selector: self._reached_by(rule.selector) for rule in put}

    async def undo(
        self,
        revision: int,
        author: Author,
        check: Callable[[Selector], None] = lambda selector: None,
        expected: Expected = ANY_REVISION,
    ) -> Entry:
        """Make the rules that a revision changed what they were before it; what that changed.

        Args:
            check: raises where the author may not change the rule of a selector.

        Raises KeyError where the audit log does not hold the revision, UndoConflict, RevisionConflict, TooManyRules,
        StoreError, nothing changed.
        """
        entry = await self._on_disk(self._store.entry, revision)  # behind no reader of the log
        if entry is None:
            raise KeyError(revision)
        for changed in entry.changes:
            check(changed.selector)
        _, undone = await self._change(lambda book: undoing(entry, book, self.now()), author, expected)
        if undone is None:
            raise UndoConflict(f"revision {revision} changed nothing that could be undone")
        return undone

    async def audit(self, limit: int, before: int | None = None) -> list[Entry]:
        """The latest revisions, latest first. Raises StoreError."""
        return await self._reading(self._store.audit, limit, before)

    def document(self, name: str) -> Any:
        """What else is stored under a name; None where nothing is. Raises StoreError."""
        return self._store.document(name)

    async def keep_limit(self, name: str, body: Any, action: Action, limit: LimitChange | None, author: Author) -> None:
        """Store a changed budget, quota or switch, as a revision of its own. Raises StoreError, nothing changed."""
        async with self._writing():
            book = self.book.change([])
            entry = Entry(book.revision, self.now(), author.who, action, author.why, limit=limit)
            write = functools.partial(self._store.write, *self._unwritten, entry, document=(name, body))
            await self._on_disk(self._check, write)
            self._unwritten.clear()
            self.book = book
            self._obey(book.without_expired(self.now()))  # what ended meanwhile is not back, not for a moment

    async def keep(self, name: str, body: Any) -> None:
        """Store something else under a name. Raises StoreError, nothing changed."""
        async with self._writing():
            await self._on_disk(self._check, lambda: self._store.set_document(name, body))

    def reached(self) -> dict[Selector, int]:
        """For every rule, how many targets have at least one kind of entry under it."""
        counts = self._node.reached()
        return {selector: counts.get(selector, 0) for selector in self.book.rules}

    def _reached_by(self, selector: Selector) -> int:
        return self._node.reached_by(selector)

    async def _change(
        self, make: Callable[[RuleBook], Change], author: Author, expected: Expected
    ) -> tuple[RuleBook, Entry | None]:
        """The rules, and what was changed of them; None where they were as they are to be."""
        # A caller who goes away does not stop a change half-way: what is obeyed must be on disk.
        return await asyncio.shield(self._commit(make, author, expected))

    @asynccontextmanager
    async def _writing(self) -> AsyncIterator[None]:
        try:
            async with self._lock:
                yield
        finally:
            self._changed.set()  # there is an end to wait for, a copy to make, or a disk to look after

    async def _commit(
        self, make: Callable[[RuleBook], Change], author: Author, expected: Expected
    ) -> tuple[RuleBook, Entry | None]:
        async with self._writing():
            change = effective(make(self.book), self.book.rules)
            if not change.put and not change.removed:
                return self.book, None  # as RFC 9110, section 13.1.1, allows even where If-Match names another revision
            if not expected(self.book.revision):
                raise RevisionConflict
            book = self.book.change(change.put, change.removed)
            if len(book.rules) > max(RULES_MAX, len(self.book.rules)):
                raise TooManyRules
            changes = changes_of(change, self.book, book)
            entry = Entry(book.revision, self.now(), author.who, change.action, author.why, changes)
            # The disk may be slow; the node goes on meanwhile. What no disk would take is found out first.
            await self._on_disk(self._check, lambda: self._store.prepare(*self._unwritten, entry))
            try:
                self._obey(book)
                await self._on_disk(self._check, self._store.commit)
            except BaseException:
                await self._on_disk(self._store.forget)
                self._obey(self.book.without_expired(self.now()))
                raise
            self.book = book
            self._unwritten.clear()
            return book, entry

    def _obey(self, book: RuleBook) -> None:
        if book is not self._obeyed:
            self._obeyed = book
            self._turned.set()
            self._node.apply(book)

    async def _on_disk(self, call: Callable[..., _T], *arguments: Any) -> _T:
        """In a thread in which nothing else is done: a rule waits for nobody's look at anything."""
        return await asyncio.get_running_loop().run_in_executor(self._writer, call, *arguments)

    async def _reading(self, call: Callable[..., _T], *arguments: Any) -> _T:
        """One at a time: whoever reads the log keeps those waiting who read it, too."""
        return await asyncio.get_running_loop().run_in_executor(self._reader, call, *arguments)

    def _check(self, write: Callable[[], None]) -> None:
        """Write, and remember whether that could be done. Raises StoreError."""
        try:
            write()
        except StoreError as error:
            self.trouble = str(error)
            self._probe_at = time.monotonic() + _CLOCK_S
            raise
        self.trouble = ""

    def _end_expired(self) -> bool:
        book = self.book.without_expired(self.now())
        if book is self.book:
            return False
        over = Change("expire", (), tuple(selector for selector in self.book.rules if selector not in book.rules))
        changes = changes_of(over, self.book, book)
        self._unwritten.append(Entry(book.revision, self.now(), "spandial", "expire", "its time had come", changes))
        self.book = book
        return True

    async def _expire(self) -> None:
        async with self._lock:
            if self._end_expired():
                self._obey(self.book)
            self._follow_clock()

    def _follow_clock(self) -> None:
        """Where the wall clock was set, rules end when they would have: what is stored and shown is its time."""
        step = self._clock.step()
        if not step:
            return
        ending = [rule for rule in self.book.rules.values() if rule.expires is not None]
        if ending:
            moved = Change("renew", tuple(replace(rule, expires=(rule.expires or 0) + step) for rule in ending))
            book = self.book.change(moved.put)
            changes = changes_of(moved, self.book, book)
            why = f"the clock was set by {step:+.0f} s: they end when they would have"
            self._unwritten.append(Entry(book.revision, self.now() + step, "spandial", "renew", why, changes))
            self.book = book
        self._clock.set(step)
        self._obey(self.book)

    async def _mend(self) -> None:
        """Write what could not be written, also where nobody changes anything. Whatever the disk says: what has ended
        is not loaded again either."""
        async with self._lock:
            with suppress(StoreError):
                if self._unwritten:
                    await self._on_disk(self._check, lambda: self._store.write(*self._unwritten))
                    self._unwritten.clear()
                elif self.trouble and time.monotonic() >= self._probe_at:
                    await self._on_disk(self._check, self._store.probe)
                elif not self.trouble:  # somebody may have removed its files
                    await self._on_disk(self._check, self._store.look)
            book = self.book
        if self._copy is not None and not self._copy.is_there:
            self._copied = None
        if self._copy is not None and self._copied is not book and time.monotonic() >= self._copy_at:
            self._copy_at = time.monotonic() + _COPY_S
            with suppress(OSError):  # the store is what counts
                await asyncio.to_thread(self._copy.save, book)
                self._copied = book
