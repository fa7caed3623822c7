"""A whole book in a store, as one revision."""

from __future__ import annotations

from spandial_api.audit import Changed, Entry
from spandial_api.rules import RuleBook
from spandial_api.store import Store


def entry_of(book: RuleBook, before: RuleBook | None = None) -> Entry:
    """What makes one book of another."""
    old = (before or RuleBook()).rules
    changes = [Changed(s, old.get(s), book.rules.get(s)) for s in dict.fromkeys([*old, *book.rules])]
    return Entry(book.revision, 1000.0, "a test", "batch", "", tuple(changes))


def save(store: Store, book: RuleBook) -> None:
    store.write(entry_of(book, store.load()))
