"""How a start finds the rules: in the store, or in the copy beside it where that is newer or the store is damaged."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from spandial_api.audit import Changed, Entry
from spandial_api.last_good import LastGoodRules
from spandial_api.rules import RuleBook
from spandial_api.store import NewerStore, Store, StoreError

__all__ = ["open_store"]


def open_store(path: Path, copy: LastGoodRules) -> Store:
    """The store, with the rules of the copy if those are newer. Where it cannot be used, one that has the newest rules
    that can be read, and takes no change. What was lost or cannot be read is in its `damage`.

    Raises StoreError where no rules can be read at all.
    """
    kept, damage = _kept(copy)
    book: RuleBook | None = None
    try:
        store = Store(path, copy)
        try:
            book = store.load()
            store.check()
            if kept is not None and kept.revision > book.revision:
                damage += _take_over(kept, book, store, copy)
                book = kept
        except StoreError:
            store.close()
            raise
    except StoreError as error:
        newest = max(filter(None, (book, kept)), key=lambda known: known.revision, default=None)
        if newest is None:
            raise
        return _UnusableStore(path, newest, error, damage)
    if kept is not None and kept.revision == book.revision and kept != book:
        damage.append(f"{copy.path} has other rules of revision {book.revision} than {path}, which are obeyed")
    if kept != book:
        with suppress(OSError):  # the store is what counts
            copy.save(book)
    store.damage = damage
    return store


def _kept(copy: LastGoodRules) -> tuple[RuleBook | None, list[str]]:
    try:
        return copy.load(), copy.damage
    except FileNotFoundError:
        return None, copy.damage
    except (OSError, ValueError) as error:
        return None, [*copy.damage, f"the copy of the rules cannot be read, and is made anew: {error}"]


def _take_over(kept: RuleBook, book: RuleBook, store: Store, copy: LastGoodRules) -> list[str]:
    """Have the store take the rules of the copy; what there is to say. Raises StoreError."""
    selectors = dict.fromkeys([*book.rules, *kept.rules])
    pairs = [(selector, book.rules.get(selector), kept.rules.get(selector)) for selector in selectors]
    changes = tuple(Changed(*pair) for pair in pairs if pair[1] != pair[2])
    if book.revision:
        lost = f"revisions {book.revision + 1} to {kept.revision} were lost in the store"
        why = f"{lost}; these are the rules of the copy beside it"
    else:
        why = "the store was new; these are the rules of the copy beside it"
    store.write(Entry(kept.revision, time.time(), "spandial", "batch", why, changes))
    with suppress(OSError):  # what its log says besides was of revisions that the store will give anew
        copy.save(kept, alone=True)
    if not book.revision:  # a damaged one was moved away, as it was asked for
        return [f"{store.path} was new: a switch, budgets and quotas that may have been set are gone; set them again"]
    return [
        f"{lost}, {store.path}: the rules of the copy beside it are obeyed; what these revisions said in the audit log "
        "is gone, and so may be budgets and quotas that they set"
    ]


class _UnusableStore(Store):
    """The newest rules that can be read, and the reason why nothing can be written."""

    def __init__(self, path: Path, book: RuleBook, reason: StoreError, damage: list[str]) -> None:
        self.path = path
        self.damage = damage
        self._book = book
        self.newer = isinstance(reason, NewerStore)
        what_to_do = "" if self.newer else ": mend the file or move it away, and start the agent again"
        self._sentence = (
            f"{reason}; obeying the rules of revision {book.revision}, the newest that can be read, and no change is "
            f"taken{what_to_do}"
        )

    @property
    def _reason(self) -> StoreError:
        """A new one each time: an exception remembers each time that it was raised."""
        return StoreError(self._sentence)

    def load(self) -> RuleBook:
        return self._book

    def prepare(self, *entries: Entry, document: tuple[str, Any] | None = None) -> None:
        raise self._reason

    def _entries(self, which: str, *values: int) -> list[Entry]:
        raise self._reason

    def document(self, name: str) -> Any:
        raise self._reason

    def set_document(self, name: str, body: Any) -> None:
        raise self._reason

    def probe(self) -> None:
        raise self._reason

    def look(self) -> None:
        raise self._reason

    def close(self) -> None:
        pass
