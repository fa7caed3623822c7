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

from spandial_api.audit import Entry
from spandial_api.folders import check_file, make_folder, remove_readable, sync_folder
from spandial_api.last_good import LastGoodRules
from spandial_api.rules import RuleBook
from spandial_api.stored import entry_changes, parse_entry, rule_text, selector_key
from spandial_api.tables import UNREADABLE, VERSION, book_sum, migrate, read_rules, row_sum

__all__ = ["AUDIT_MAX", "NewerStore", "Store", "StoreError"]

AUDIT_MAX = 10_000  # revisions that the audit log goes back
_PAGE_MAX = 1 << 20  # characters of changes that are handed out at once
_CHECK_S = 0.25  # that a start looks at pages for; all rules are read and compared anyway


class StoreError(Exception):
    """The rules cannot be read or written; says which file and why."""


class NewerStore(StoreError):
    """A newer version of spandial has written the rules; nothing was touched."""


class Store:
    """One SQLite file. Any thread may call anything at any time, but a revision that is prepared is one caller's until
    he commits it or forgets it.

    Args:
        copy: is told of every revision that is committed.

    Attributes:
        newer: the file is a newer version's, and so is the copy beside it: neither may be written.
        damage: what was lost or could not be read when it was opened, one sentence each.

    Raises StoreError where the file cannot be used.
    """

    newer = False

    def __init__(self, path: Path, copy: LastGoodRules | None = None) -> None:
        self.path = path
        self.damage: list[str] = []
        self._copy = copy
        self._prepared: tuple[Entry, ...] = ()
        # SQLite's connection, closed while another thread is at work in it, takes the process with it.
        self._use = threading.RLock()
        self._connect()

    def _connect(self) -> None:
        """Raises StoreError."""
        try:
            _own(self.path)
            self._database = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
            _refuse_newer(self.path, self._database)
            # FULL makes every commit reach the disk before it returns, also in WAL mode (sqlite.org/pragma.html).
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            if self._database.execute("PRAGMA user_version").fetchone()[0] < VERSION:
                with self._writing():
                    self._database.execute("BEGIN IMMEDIATE")
                    migrate(self._database)
                    self._database.execute("COMMIT")
        except (*UNREADABLE, OSError) as error:
            raise StoreError(f"the rules in {self.path} cannot be opened: {error}") from error
        self._files = self._identities()

    def check(self) -> None:
        """Look whether the file's pages belong together, for a moment. Raises StoreError."""
        end = time.monotonic() + _CHECK_S
        with self._use:
            self._database.set_progress_handler(lambda: time.monotonic() > end, 1000)
            try:
                found = self._database.execute("PRAGMA quick_check(1)").fetchone()[0]
            except UNREADABLE as error:
                found = "ok" if time.monotonic() > end else error
            finally:
                self._database.set_progress_handler(None, 0)
        if found != "ok":
            raise StoreError(f"the rules in {self.path} are damaged: {found}")

    def load(self) -> RuleBook:
        """Raises StoreError."""
        try:
            with self._use:
                rules, revision = read_rules(self._database)
        except UNREADABLE as error:
            raise StoreError(f"the rules in {self.path} cannot be read: {error}") from error
        return RuleBook.of(rules, revision)

    def prepare(self, *entries: Entry, document: tuple[str, Any] | None = None) -> None:
        """Write revisions, oldest first, and a document with them; they hold once they are committed. Raises
        StoreError, nothing written."""
        with self._writing():
            self._be_there()
            self._database.execute("BEGIN IMMEDIATE")
            [(rules,)] = self._database.execute("SELECT rules FROM state").fetchall()
            for entry in entries:
                for selector, _, after in entry.changes:
                    key = selector_key(selector)
                    rules = book_sum(rules, *self._sum_of(key))
                    if after is None:
                        self._database.execute("DELETE FROM rules WHERE selector = ?", (key,))
                    else:
                        text = rule_text(after)
                        checksum = row_sum(key, text)
                        self._database.execute("INSERT OR REPLACE INTO rules VALUES (?, ?, ?)", (key, text, checksum))
                        rules = book_sum(rules, checksum)
                row = (entry.revision, float(entry.time), entry.who, entry.action, entry.why, entry_changes(entry))
                self._database.execute(
                    "INSERT OR REPLACE INTO audit VALUES (?, ?, ?, ?, ?, ?, ?)", (*row, row_sum(*row))
                )
            latest = entries[-1].revision
            self._database.execute("DELETE FROM audit WHERE revision <= ?", (latest - AUDIT_MAX,))
            state = (latest, rules, row_sum(latest, rules))
            self._database.execute("UPDATE state SET revision = ?, rules = ?, sum = ?", state)
            if document is not None:
                self._put_document(*document)
            self._prepared = entries

    def _sum_of(self, key: str) -> Iterator[int]:
        """Of the selector's rule, if there is one."""
        for (checksum,) in self._database.execute("SELECT sum FROM rules WHERE selector = ?", (key,)):
            yield checksum

    def commit(self) -> None:
        """Have what is prepared reach the disk. Raises StoreError: what was stored before still is."""
        with self._writing():
            self._be_there()  # another file in its place is found out while nothing is changed
            self._database.execute("COMMIT")
            self._be_there()
            if self._copy is not None:
                with suppress(OSError):  # the store is what counts
                    self._copy.add(self._prepared)

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
                columns = "revision, time, who, action, why, changes, sum"
                entries: list[Entry] = []
                length = 0
                for *row, checksum in database.execute(f"SELECT {columns} FROM audit {which}", values):
                    if checksum is not None and checksum != row_sum(*row):
                        raise ValueError(f"revision {row[0]} is not what was written")
                    length += len(row[-1])
                    if entries and length > _PAGE_MAX:
                        break
                    entries.append(parse_entry(*row))
                return entries
        except UNREADABLE as error:
            raise StoreError(f"the audit log in {self.path} cannot be read: {error}") from error

    def document(self, name: str) -> Any:
        """What else was stored under a name; None where nothing was. Raises StoreError."""
        try:
            with self._use:
                found = self._database.execute(
                    "SELECT name, body, sum FROM documents WHERE name = ?", (name,)
                ).fetchall()
            for *row, checksum in found:
                if checksum is not None and checksum != row_sum(*row):
                    raise ValueError("it is not what was written")
                return json.loads(row[1])
            return None
        except UNREADABLE as error:
            raise StoreError(f"{name} in {self.path} cannot be read: {error}") from error

    def set_document(self, name: str, body: Any) -> None:
        """Store something that JSON can say under a name, all or nothing. Raises StoreError."""
        with self._writing():
            self._be_there()
            self._put_document(name, body)
            self._be_there()

    def _put_document(self, name: str, body: Any) -> None:
        row = (name, json.dumps(body))
        self._database.execute("INSERT OR REPLACE INTO documents VALUES (?, ?, ?)", (*row, row_sum(*row)))

    def probe(self) -> None:
        """Write something that changes nothing. Raises StoreError."""
        with self._writing():
            self._be_there()
            self._database.execute("UPDATE state SET revision = revision")

    def look(self) -> None:
        """Make the files anew if somebody removed them. Raises StoreError where that cannot be done."""
        with self._writing():
            self._be_there()

    def _identities(self) -> dict[Path, tuple[int, int]]:
        found = {}
        for suffix in ("", "-wal", "-shm"):
            path = self.path.with_name(self.path.name + suffix)
            with suppress(FileNotFoundError):
                known = os.lstat(path)
                found[path] = known.st_dev, known.st_ino
        return found

    def _be_there(self) -> None:
        """What is written into a file that was removed is gone with this process: the file is made anew of what this
        process still has of it. Raises StoreError where another has taken its place, OSError, sqlite3.Error."""
        found = self._identities()
        for path, identity in self._files.items():
            if found.get(path, identity) != identity:
                raise StoreError(
                    f"{path} was replaced by another file while the agent ran, and no change is taken: move it away, "
                    "or start the agent again to obey it"
                )
        if self._files.keys() <= found.keys():
            self._files = found
        elif not self._database.in_transaction:
            self._make_anew()

    def _make_anew(self) -> None:
        os.close(make_folder(self.path.parent, 0o700))
        new = self.path.with_name(self.path.name + ".new")
        new.unlink(missing_ok=True)
        os.close(os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        with closing(sqlite3.connect(new, isolation_level=None)) as database:
            self._database.backup(database)
            database.execute("PRAGMA journal_mode = DELETE")  # all is in the one file
        for suffix in ("-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        self._database.close()  # before the new one is opened: this removes a log of its name
        new.rename(self.path)
        sync_folder(self.path.parent)
        self._connect()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with self._use:
                yield
        except BaseException as error:
            self.forget()
            if isinstance(error, (sqlite3.Error, OSError, ValueError)):
                raise StoreError(f"the rules in {self.path} cannot be written: {error}") from error
            raise

    def close(self) -> None:
        with self._use:
            self._files = {}
            self._database.close()


def _refuse_newer(path: Path, database: sqlite3.Connection) -> None:
    """Before anything is done that could change the file. Raises NewerStore, sqlite3.Error."""
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if version > VERSION:
        database.close()
        raise NewerStore(
            f"the rules in {path} are of a newer version of spandial ({version}, not {VERSION}) and are left as they "
            "are: start that version again"
        )


def _own(path: Path) -> None:
    """Have the store's files be their owner's alone: who can read one can hold a lock on it. Raises OSError."""
    if str(path) == ":memory:":  # SQLite's name for no file at all
        return
    remove_readable(path.with_name(path.name + "-shm"))  # made anew of the others
    for suffix in ("", "-wal", "-shm", "-journal"):
        check_file(path.with_name(path.name + suffix))
    if not path.exists():  # SQLite gives the others the mode of this one
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
