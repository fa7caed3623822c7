"""What a database was asked, and what came of it."""

from __future__ import annotations

from typing import Literal, NamedTuple

__all__ = ["NAMESPACE_MAX", "RAW_MAX", "TEXT_MAX", "Dialect", "Operation", "Outcome", "raw_text"]

Dialect = Literal["postgres", "mysql"]

TEXT_MAX = 512  # characters of a text
NAMESPACE_MAX = 64  # characters of a database's name
RAW_MAX = 1024  # characters of what is shown as it was received


class Operation(NamedTuple):
    """One operation as a client sent it. Of its literals and arguments, only `raw` holds anything."""

    name: str = ""  # "SELECT", "GET", "CLIENT SETINFO"; "" if unknown
    collection: str = ""  # the one table that it concerns; "" if none or several
    text: str = ""  # with `?` for whatever may be data; "" if unknown
    raw: str = ""  # as received, for who has asked for it; "" if what was prepared is unknown
    complete: bool = False  # False: bytes are missing
    arguments: int = 0  # Redis: arguments after the name
    namespace: str = ""  # the database; "" if unknown


class Outcome(NamedTuple):
    """What a reply says. A server's message is left out: it may quote data."""

    error: bool = False
    code: str = ""  # SQLSTATE, MySQL's error number, Redis's error prefix; "" if none
    command: str = ""  # what was done, of PostgreSQL's command tag: "SELECT"; "" if none
    rows: int | None = None  # that were returned, of the same; of several statements the last one's


def raw_text(data: bytes) -> str:
    """The beginning of these bytes as text; what is not UTF-8 is shown as escapes."""
    return data[:RAW_MAX].decode("utf-8", "backslashreplace")[:RAW_MAX]
