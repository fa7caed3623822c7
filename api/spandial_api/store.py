"""The rules and the audit log on disk: SQLite, durable before a change is answered."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from spandial.abi import Mode
from spandial_api.audit import Changed, Entry
from spandial_api.folders import check_file, remove_readable
from spandial_api.rules import Rule, RuleBook
from spandial_api.selectors import Selector
from spandial_api.stored import entry_changes, parse_entry, parse_rule, rule_text, selector_key

__all__ = ["AUDIT_MAX", "LastGoodRules", "Store", "StoreError", "open_store"]

AUDIT_MAX = 10_000  # revisions that the audit log goes back
_PAGE_MAX = 1 << 20  # characters of changes that are handed out at once

_VERSION = 2  # of the tables: PRAGMA user_version
_SCHEMA = """
CREATE TABLE IF NOT EXISTS rules (selector TEXT PRIMARY KEY, rule TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS audit (
    revision INTEGER PRIMARY KEY,
    time REAL NOT NULL, who TEXT NOT NULL, action TEXT NOT NULL, why TEXT NOT NULL, changes TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS state (revision INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS documents (name TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;
"""


class StoreError(Exception):
    """The rules cannot be read or written; says which file and why."""


class Store:
    """One SQLite file. Any thread may call anything at any time, but a revision that is prepared is one caller's until
    he commits it or forgets it.

    Raises StoreError where the file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # SQLite's connection, closed while another thread is at work in it, takes the process with it.
        self._use = threading.RLock()
        try:
            _own(path)
            self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            # FULL makes every commit reach the disk before it returns, also in WAL mode (sqlite.org/pragma.html).
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            version = self._database.execute("PRAGMA user_version").fetchone()[0]
            if version > _VERSION:
                raise StoreError(f"the rules in {path} are of a newer version of spandial ({version}, not {_VERSION})")
            if version < _VERSION:
                self._migrate()
        except (sqlite3.Error, ValueError, OSError) as error:
            raise StoreError(f"the rules in {path} cannot be opened: {error}") from error

    def _migrate(self) -> None:
        """Make the tables, with the rules of an older version's: one column a field."""
        old: list[Rule] = []
        revision = 0
        with self._writing():
            self._database.execute("BEGIN IMMEDIATE")
            columns = [row[1] for row in self._database.execute("PRAGMA table_info(rules)")]
            if columns:
                rows = self._database.execute("SELECT * FROM rules").fetchall()
                old = [_old_rule(dict(zip(columns, row))) for row in rows]
                revision = self._database.execute("SELECT max(revision) FROM state").fetchone()[0] or 0
                self._database.execute("DROP TABLE rules")
                self._database.execute("DROP TABLE state")
            for statement in _SCHEMA.split(";"):
                self._database.execute(statement)
            rules = [(selector_key(rule.selector), rule_text(rule)) for rule in old]
            self._database.executemany("INSERT INTO rules VALUES (?, ?)", rules)
            self._database.execute("INSERT INTO state VALUES (?)", (revision,))
            self._database.execute(f"PRAGMA user_version = {_VERSION}")
            self._database.execute("COMMIT")

    def load(self) -> RuleBook:
        """Raises StoreError."""
        try:
            with self._use:
                rules = [parse_rule(*row) for row in self._database.execute("SELECT selector, rule FROM rules")]
                revision = self._database.execute("SELECT max(revision) FROM state").fetchone()[0] or 0
        except (sqlite3.Error, ValueError) as error:
            raise StoreError(f"the rules in {self.path} cannot be read: {error}") from error
        return RuleBook.of(rules, revision)

    def prepare(self, *entries: Entry, document: tuple[str, Any] | None = None) -> None:
        """Write revisions, oldest first, and a document with them; they hold once they are committed. Raises
        StoreError, nothing written."""
        with self._writing():
            self._database.execute("BEGIN IMMEDIATE")
            for entry in entries:
                for selector, _, after in entry.changes:
                    key = selector_key(selector)
                    if after is None:
                        self._database.execute("DELETE FROM rules WHERE selector = ?", (key,))
                    else:
                        self._database.execute("INSERT OR REPLACE INTO rules VALUES (?, ?)", (key, rule_text(after)))
                row = (entry.revision, entry.time, entry.who, entry.action, entry.why, entry_changes(entry))
                self._database.execute("INSERT OR REPLACE INTO audit VALUES (?, ?, ?, ?, ?, ?)", row)
            latest = entries[-1].revision
            self._database.execute("DELETE FROM audit WHERE revision <= ?", (latest - AUDIT_MAX,))
            self._database.execute("UPDATE state SET revision = ?", (latest,))
            if document is not None:
                self._put_document(*document)

    def commit(self) -> None:
        """Have what is prepared reach the disk. Raises StoreError: what was stored before still is."""
        with self._writing():
            self._database.execute("COMMIT")

    def forget(self) -> None:
        """Have what is prepared, and not committed, never be."""
        # What fails here has been rolled back already (sqlite.org/lang_transaction.html), or is closed.
        with self._use, suppress(sqlite3.Error):
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")

    def write(self, *entries: Entry, document: tuple[str, Any] | None = None) -> None:
        """Both at once. Raises StoreError, nothing written."""
        self.prepare(*entries, document=document)
        self.commit()

    def audit(self, limit: int, before: int | None = None) -> list[Entry]:
        """The latest revisions, latest first; with `before` those that are older than it. Fewer than the limit, but one
        at least, where they are long. Raises StoreError."""
        last = before if before is not None else (1 << 62)
        return self._entries("WHERE revision < ? ORDER BY revision DESC LIMIT ?", last, limit)

    def entry(self, revision: int) -> Entry | None:
        """One revision; None where the log does not hold it. Raises StoreError."""
        return next(iter(self._entries("WHERE revision = ?", revision)), None)

    def _entries(self, which: str, *values: int) -> list[Entry]:
        try:  # a connection of its own sees what is committed, whatever is being written
            with closing(sqlite3.connect(f"file:{quote(str(self.path))}?mode=ro", uri=True)) as database:
                columns = "revision, time, who, action, why, changes"
                entries: list[Entry] = []
                length = 0
                for row in database.execute(f"SELECT {columns} FROM audit {which}", values):
                    length += len(row[-1])
                    if entries and length > _PAGE_MAX:
                        break
                    entries.append(parse_entry(*row))
                return entries
        except (sqlite3.Error, ValueError) as error:
            raise StoreError(f"the audit log in {self.path} cannot be read: {error}") from error

    def document(self, name: str) -> Any:
        """What else was stored under a name; None where nothing was. Raises StoreError."""
        try:
            with self._use:
                row = self._database.execute("SELECT body FROM documents WHERE name = ?", (name,)).fetchone()
            return None if row is None else json.loads(row[0])
        except (sqlite3.Error, ValueError) as error:
            raise StoreError(f"{name} in {self.path} cannot be read: {error}") from error

    def set_document(self, name: str, body: Any) -> None:
        """Store something that JSON can say under a name, all or nothing. Raises StoreError."""
        with self._writing():
            self._put_document(name, body)

    def _put_document(self, name: str, body: Any) -> None:
        self._database.execute("INSERT OR REPLACE INTO documents VALUES (?, ?)", (name, json.dumps(body)))

    def probe(self) -> None:
        """Write something that changes nothing. Raises StoreError."""
        with self._writing():
            self._database.execute("UPDATE state SET revision = revision")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with self._use:
                yield
        except BaseException as error:
            self.forget()
            if isinstance(error, sqlite3.Error):
                raise StoreError(f"the rules in {self.path} cannot be written: {error}") from error
            raise

    def close(self) -> None:
        with self._use:
            self._database.close()


def _own(path: Path) -> None:
    """Have the store's files be their owner's alone: who can read one can hold a lock on it. Raises OSError."""
    remove_readable(path.with_name(path.name + "-shm"))  # made anew of the others
    for suffix in ("", "-wal", "-shm", "-journal"):
        check_file(path.with_name(path.name + suffix))
    if not path.exists():  # SQLite gives the others the mode of this one
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))


class LastGoodRules:
    """A copy of the rules beside the store, for the day when the store cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, book: RuleBook) -> None:
        """All or nothing. Raises OSError."""
        rules = [[selector_key(rule.selector), rule_text(rule)] for rule in book.rules.values()]
        part = self.path.with_suffix(".part")
        with suppress(FileNotFoundError):
            part.unlink()
        new = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(new, "w") as file:
            json.dump({"revision": book.revision, "rules": rules}, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.path)

    def load(self) -> RuleBook:
        """Raises OSError, ValueError."""
        check_file(self.path)
        stored = json.loads(self.path.read_text())
        try:
            return RuleBook.of([parse_rule(key, rule) for key, rule in stored["rules"]], int(stored["revision"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"{self.path} holds no rules") from error


class _UnusableStore(Store):
    """The rules as they were last known to be good, and the reason why nothing can be written."""

    def __init__(self, path: Path, book: RuleBook, reason: StoreError) -> None:
        self.path = path
        self._book = book
        self._reason = StoreError(
            f"{reason}; obeying the rules of revision {book.revision}, of a copy beside it, and no change is taken: "
            "mend the file or move it away, and start the agent again"
        )

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

    def close(self) -> None:
        pass


def open_store(path: Path, copy: LastGoodRules) -> Store:
    """The store; where it cannot be used, one that has the rules of the copy and takes no change. One that is new
    beside a copy, because the damaged one was moved away, begins with its rules.

    Raises StoreError where there is no copy either.
    """
    try:
        store = Store(path)
        if store.load().revision == 0:
            with suppress(OSError, ValueError):
                _take_over(copy.load(), store)
        return store
    except StoreError as error:
        try:
            return _UnusableStore(path, copy.load(), error)
        except (OSError, ValueError):
            raise error from None


def _take_over(book: RuleBook, store: Store) -> None:
    """Raises StoreError."""
    if book.revision:
        changes = tuple(Changed(selector, None, rule) for selector, rule in book.rules.items())
        why = "the store was new; these are the rules of the copy beside it"
        store.write(Entry(book.revision, time.time(), "spandial", "batch", why, changes))


def _old_rule(row: dict[str, Any]) -> Rule:
    selector = Selector(row["service"], row["version"], row["env"], row["protocol"])
    rule = Rule(selector, row["rate"], Mode(row["mode"]), row["revision"], row.get("expires"))
    return parse_rule(selector_key(selector), rule_text(rule))
