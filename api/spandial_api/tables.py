"""The store's tables: what is in a row, and a checksum that tells whether it is still what was written."""

from __future__ import annotations

import sqlite3
import zlib
from typing import Any

from spandial.abi import Mode
from spandial_api.rules import Rule
from spandial_api.selectors import Selector
from spandial_api.stored import parse_rule, rule_text, selector_key

__all__ = ["UNREADABLE", "VERSION", "book_sum", "migrate", "read_rules", "row_sum"]

VERSION = 3  # of the tables: PRAGMA user_version
_SCHEMA = """
CREATE TABLE IF NOT EXISTS rules (selector TEXT PRIMARY KEY, rule TEXT NOT NULL, sum INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS audit (
    revision INTEGER PRIMARY KEY,
    time REAL NOT NULL, who TEXT NOT NULL, action TEXT NOT NULL, why TEXT NOT NULL, changes TEXT NOT NULL, sum INTEGER
);
CREATE TABLE IF NOT EXISTS state (revision INTEGER NOT NULL, rules INTEGER NOT NULL, sum INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS documents (name TEXT PRIMARY KEY, body TEXT NOT NULL, sum INTEGER) WITHOUT ROWID;
"""

UNREADABLE = (
    sqlite3.Error,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    RecursionError,
    MemoryError,
)
"""What reading a damaged file raises: of SQLite, of JSON, and of values that are of another type than was written."""


def row_sum(*values: object) -> int:
    """Of a row's other columns, as they are read."""
    return zlib.crc32(ascii(values).encode())  # repr() would depend on the Unicode that Python knows


def book_sum(sums: int, *rows: int) -> int:
    """Of all rules' checksums; the same call adds one and takes it away."""
    for row in rows:
        sums ^= row
    return sums


def read_rules(database: sqlite3.Connection) -> tuple[list[Rule], int]:
    """All rules and their revision. Raises one of UNREADABLE for what is not as it was written."""
    rules, sums = [], 0
    for selector, rule, checksum in database.execute("SELECT selector, rule, sum FROM rules"):
        if checksum != row_sum(selector, rule):
            raise ValueError(f"the rule for {selector!r:.200} is not what was written")
        rules.append(parse_rule(selector, rule))
        sums = book_sum(sums, checksum)
    [(revision, of_rules, checksum)] = database.execute("SELECT revision, rules, sum FROM state").fetchall()
    if checksum != row_sum(revision, of_rules):
        raise ValueError("the revision is not what was written")
    if sums != of_rules:
        raise ValueError("not all rules are there, or some that were removed are back")
    return rules, revision


def migrate(database: sqlite3.Connection) -> None:
    """Make the tables, in a transaction that is open, with what older versions have left: one column a field (0), no
    documents (1), no checksums (2). Raises one of UNREADABLE."""
    rules: list[Rule] = []
    revision = 0
    columns = [row[1] for row in database.execute("PRAGMA table_info(rules)")]
    if columns:
        rows = database.execute("SELECT * FROM rules").fetchall()
        rules = [_old_rule(dict(zip(columns, row))) for row in rows]
        revision = database.execute("SELECT max(revision) FROM state").fetchone()[0] or 0
        database.execute("DROP TABLE rules")
        database.execute("DROP TABLE state")
    for table in ("audit", "documents"):  # their rows of older versions have no checksum, and are taken as they are
        columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
        if columns and "sum" not in columns:
            database.execute(f"ALTER TABLE {table} ADD COLUMN sum INTEGER")
    for statement in _SCHEMA.split(";"):
        database.execute(statement)
    texts = [(selector_key(rule.selector), rule_text(rule)) for rule in rules]
    sums = [row_sum(*text) for text in texts]
    database.executemany("INSERT INTO rules VALUES (?, ?, ?)", [(*text, of_it) for text, of_it in zip(texts, sums)])
    of_rules = book_sum(0, *sums)
    database.execute("INSERT INTO state VALUES (?, ?, ?)", (revision, of_rules, row_sum(revision, of_rules)))
    database.execute(f"PRAGMA user_version = {VERSION}")


def _old_rule(row: dict[str, Any]) -> Rule:
    if "selector" in row:
        return parse_rule(row["selector"], row["rule"])
    selector = Selector(row["service"], row["version"], row["env"], row["protocol"])
    rule = Rule(selector, row["rate"], Mode(row["mode"]), row["revision"], row.get("expires"))
    return parse_rule(selector_key(selector), rule_text(rule))
