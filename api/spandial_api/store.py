"""The rules on disk: SQLite, durable before a change is answered."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spandial.abi import Mode
from spandial_api.rules import Rule, RuleBook
from spandial_api.selectors import PROTOCOLS, Selector

__all__ = ["Store", "StoreError"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS rules (
    service TEXT, version TEXT, env TEXT, protocol TEXT,
    rate REAL NOT NULL, mode INTEGER NOT NULL, revision INTEGER NOT NULL, expires REAL
);
CREATE TABLE IF NOT EXISTS state (revision INTEGER NOT NULL);
"""


class StoreError(Exception):
    """The rules cannot be read or written; says which file and why."""


class Store:
    """One SQLite file.

    Raises StoreError where the file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            # FULL makes every commit reach the disk before it returns, also in WAL mode (sqlite.org/pragma.html).
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            self._database.executescript(_SCHEMA)
            columns = {row[1] for row in self._database.execute("PRAGMA table_info(rules)")}
            if "expires" not in columns:  # of a version before rules ended by themselves
                self._database.execute("ALTER TABLE rules ADD COLUMN expires REAL")
        except sqlite3.Error as error:
            raise StoreError(f"the rules in {path} cannot be opened: {error}") from error

    def load(self) -> RuleBook:
        """Raises StoreError."""
        try:
            rows = self._database.execute(
                "SELECT service, version, env, protocol, rate, mode, revision, expires FROM rules"
            )
            rules = [_rule(row) for row in rows]
            revision = self._database.execute("SELECT max(revision) FROM state").fetchone()[0] or 0
        except (sqlite3.Error, ValueError) as error:
            raise StoreError(f"the rules in {self.path} cannot be read: {error}") from error
        return RuleBook.of(rules, revision)

    def save(self, book: RuleBook) -> None:
        """Replace what is stored by this book, all or nothing. Raises StoreError."""
        self.prepare(book)
        self.commit()

    def prepare(self, book: RuleBook) -> None:
        """Write this book, which replaces what is stored once it is committed. Raises StoreError, nothing written."""
        with self._writing():
            self._database.execute("BEGIN IMMEDIATE")
            self._database.execute("DELETE FROM rules")
            self._database.execute("DELETE FROM state")
            self._database.executemany(
                "INSERT INTO rules VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (s.service, s.version, s.env, s.protocol, rule.rate, int(rule.mode), rule.revision, rule.expires)
                    for rule in book
                    for s in [rule.selector]
                ],
            )
            self._database.execute("INSERT INTO state VALUES (?)", (book.revision,))

    def commit(self) -> None:
        """Have the prepared book reach the disk. Raises StoreError: what was stored before still is."""
        with self._writing():
            self._database.execute("COMMIT")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error):
                raise StoreError(f"the rules in {self.path} cannot be written: {error}") from error
            raise

    def close(self) -> None:
        self._database.close()


def _rule(row: tuple[Any, ...]) -> Rule:
    """A stored rule. Raises ValueError for what this version cannot obey: another version may have stored it."""
    service, version, env, protocol, rate, mode, revision, expires = row
    if protocol is not None and protocol not in PROTOCOLS:
        raise ValueError(f"there is no protocol {protocol!r}")
    if not isinstance(rate, float) or not 0 <= rate <= 100:
        raise ValueError(f"{rate!r} is no rate")
    if not isinstance(expires, float | None):
        raise ValueError(f"{expires!r} is no time")
    return Rule(Selector(service, version, env, protocol), rate, Mode(mode), revision, expires)
