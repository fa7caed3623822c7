"""A statement of SQL without its data: the command, the one table, the text with `?` for every literal.

Removing is done here and first: a library that translates SQL may read a comment or a string otherwise than the server
does (sqlglot ends PostgreSQL's `/*/* */ */` too early), and data would stay in the text. sqlglot's tokenizer works on
what is left, where a misreading costs the name of a table at most.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from spandial_agent.records.protocols.database import TEXT_MAX, Dialect, Operation, raw_text

__all__ = ["COMMANDS", "Dialect", "read_statement", "strip_literals"]

_READ_MAX = 2048  # bytes or characters of a statement that are looked at
_REMEMBERED = 1024  # statements whose reading is remembered, with and without their data: programs repeat themselves
_COLLECTION_MAX = 128

# What is not UTF-8 cannot be read: in GBK or Shift JIS, a backslash may be half a character. No server takes NUL.
_UNREADABLE = re.compile("[\x00\ud800-\udfff]")

_SPACE = r"[ \t\n\r\f\v]"
# A letter is whatever is not ASCII. White space beyond ASCII is one to the servers and none to sqlglot: a text ends
# there, and at a control character, which no server takes.
_LETTER = r"[^\x00-@\[-\^`{-\x7f\s]"
_TAG = rf"{_LETTER}(?:{_LETTER}|[0-9])*"
_WORD = rf"{_LETTER}(?:{_LETTER}|[0-9$])*"
_ESCAPED = r"'(?:[^'\\]|\\[\s\S]?|'')*(?:'|\Z)"
_DOLLAR = rf"\$(?P<tag>(?:{_TAG})?)\$[\s\S]*?(?:\$(?P=tag)\$|\Z) | \${_TAG}\Z"
_NUMBER = r"\.?[0-9](?:[0-9A-Za-z_.\x80-\U0010ffff]|(?<=[eE])[+-](?=[0-9]))*"  # and what is written onto it
# A string ends with its delimiter or with the text, so that no alternative can fail half-way: each pattern goes through
# a text once.
_LEXEMES = {
    # "SQL Syntax", "Lexical Structure". In a plain string, a quote behind a backslash ends the string or not, as
    # standard_conforming_strings is on or off: nothing behind it is kept.
    "postgres": re.compile(
        rf"""
          (?P<space> {_SPACE}+ | --[^\n\r]* )
        | (?P<comment> /\* )
        | (?P<literal> [eE]{_ESCAPED}
            | (?:[bBxXnN]|[uU]&)?'(?:[^']|(?<!\\)'')*(?:(?<=\\)'[\s\S]*|'|\Z)
            | {_DOLLAR} | {_NUMBER} )
        | (?P<quoted> "(?:[^"]|"")*" )
        | (?P<rest> [\x00-\x1f\x7f\s"][\s\S]* )
        | (?P<word> {_WORD} )
        | (?P<other> \$[0-9]+ | [\s\S] )
        """,
        re.VERBOSE,
    ),
    # "Language Structure", in the default sql_mode. Comments that the server runs, and hints, may hold a string that
    # holds `*/`: if there is anything of the kind in one, nothing behind it is kept.
    "mysql": re.compile(
        rf"""
          (?P<space> {_SPACE}+ | --(?=[\x00-\x20\x7f]|\Z)[^\n]* | \#[^\n]*
            | /\*(?!M?!|\+)[\s\S]*?(?:\*/|\Z) | /\*(?:M?!|\+)[^'"`/\#*\\-]*\*/ )
        | (?P<literal> (?:_[A-Za-z0-9]+{_SPACE}*|[nNxXbB])?(?:{_ESCAPED}|{_ESCAPED.replace("'", '"')})
            | {_DOLLAR} | {_NUMBER} )
        | (?P<quoted> `(?:[^`]|``)*` )
        | (?P<rest> (?:[\x00-\x1f\x7f\s`]|/\*)[\s\S]* )
        | (?P<word> {_WORD} )
        | (?P<other> [\s\S] )
        """,
        re.VERBOSE,
    ),
}
_MASKS = {"literal": "?", "rest": "?", "space": " ", "comment": " "}
_COMMENT_EDGE = re.compile(r"/\*|\*/")
_IDENTIFIER = re.compile(_WORD)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


COMMANDS = _words(
    """ABORT ALTER ANALYZE BEGIN BINLOG CALL CHANGE CHECK CHECKPOINT CHECKSUM CLOSE CLUSTER COMMENT COMMIT COPY CREATE
    DEALLOCATE DECLARE DELETE DESC DESCRIBE DISCARD DO DROP END EXECUTE EXPLAIN FETCH FLUSH GRANT HANDLER HELP IMPORT
    INSERT INSTALL KILL LISTEN LOAD LOCK MERGE MOVE NOTIFY OPTIMIZE PREPARE PURGE REASSIGN REFRESH REINDEX RELEASE
    RENAME REPAIR REPLACE RESET REVOKE ROLLBACK SAVEPOINT SECURITY SELECT SET SHOW SHUTDOWN SIGNAL START STOP TABLE
    TRUNCATE UNINSTALL UNLISTEN UNLOCK UPDATE USE VACUUM VALUES WITH XA"""
)
_BEHIND_WITH = _words("SELECT INSERT UPDATE DELETE MERGE REPLACE VALUES")
_FIRST_WORD = re.compile(r"[ (]*([A-Za-z]*)")
_BEFORE_SIGN = _words("( , = < > <= >= <> != BETWEEN AND LIMIT OFFSET")
_OF_LIST = re.compile(r"[?,()+$-]|[0-9]+|NULL")

# Where tables are named. A command is a word where a statement begins, not UPDATE in FOR UPDATE.
_BEFORE_COMMAND = _words("( ) ; EXPLAIN ANALYZE VERBOSE") | {""}
_CHANGES = _words("INSERT REPLACE MERGE UPDATE TRUNCATE COPY DESCRIBE DESC")
_OF_TABLES = _words("CREATE ALTER DROP LOCK OPTIMIZE REPAIR CHECK CHECKSUM ANALYZE")
_OF_ONE_TABLE = _words("CREATE ALTER INSERT REPLACE MERGE COPY")  # a comma brings no other
_BEFORE_TABLE = _words("ONLY LATERAL TABLE TABLES IF NOT EXISTS INTO IGNORE LOW_PRIORITY HIGH_PRIORITY DELAYED QUICK")
_ENDS_TABLES = _words(
    "WHERE SET GROUP ORDER HAVING LIMIT UNION INTERSECT EXCEPT VALUES RETURNING WINDOW OFFSET FETCH FOR WITH"
)


class _Part(NamedTuple):
    """A token: how it is written, and what it is."""

    text: str
    word: str  # in upper case; `"` for a quoted identifier
    identifier: str  # without its quotes; "" if it cannot be one
    spaced: bool  # white space is before it


def read_statement(statement: bytes, dialect: Dialect, complete: bool) -> Operation:
    """The operation that a statement is; `complete` says that it was not cut off."""
    return _read(statement[:_READ_MAX], dialect, complete and len(statement) <= _READ_MAX)


@lru_cache(maxsize=_REMEMBERED)
def _read(statement: bytes, dialect: Dialect, complete: bool) -> Operation:
    sql = statement.decode("utf-8", "surrogateescape")
    return Operation(*strip_literals(sql, dialect, not complete), raw_text(statement), complete)


def strip_literals(sql: str, dialect: Dialect, cut: bool) -> tuple[str, str, str]:
    """The command's name, the one table it concerns ("" if none or several), and the text without its literals.

    Numbers, strings, TRUE and FALSE become `?`; comments go; lists behind IN and rows behind VALUES shrink to their
    first. Identifiers and placeholders stay. Where it cannot be told what is a literal, the text ends. A word that is
    no command is no name. Never raises.

    Args:
        cut: the end is missing. A last word is then left out, since it may be half a word.
    """
    readable = _UNREADABLE.split(sql[:_READ_MAX], maxsplit=1)[0]
    return _describe(_mask(readable, dialect, cut or len(readable) < len(sql)), dialect)


@lru_cache(maxsize=_REMEMBERED)
def _describe(masked: str, dialect: Dialect) -> tuple[str, str, str]:
    from spandial_agent.records.protocols import sql_tokens  # sqlglot takes long to import

    try:
        parts = _parts(masked, sql_tokens.tokenize(masked, dialect))
    except sql_tokens.SqlglotError:
        first = _FIRST_WORD.findall(masked)[0].upper()
        return first if first in COMMANDS else "", "", " ".join(masked.split())[:TEXT_MAX].rstrip()
    return _command(parts), _collection(parts)[:_COLLECTION_MAX], _text(parts)[:TEXT_MAX].rstrip()


def _mask(sql: str, dialect: Dialect, cut: bool) -> str:
    """The statement with `?` for its strings and numbers, and a space for its comments."""
    pieces: list[str] = []
    at, kind = 0, ""
    while at < len(sql):
        found = _LEXEMES[dialect].match(sql, at)
        assert found is not None  # the last alternative takes any character
        kind, at = found.lastgroup or "", found.end()
        if kind == "comment":
            at = _comment_end(sql, found.start())
        pieces.append(_MASKS.get(kind, found[0]))
    if cut and kind in ("word", "quoted"):
        pieces.pop()
    return "".join(pieces)


def _comment_end(sql: str, start: int) -> int:
    """Where a comment of PostgreSQL's ends: they nest."""
    depth = 0
    for edge in _COMMENT_EDGE.finditer(sql, start):
        depth += 1 if edge[0] == "/*" else -1
        if not depth:
            return edge.end()
    return len(sql)


def _parts(masked: str, tokens: Iterable[tuple[int, int, str | None]]) -> list[_Part]:
    """
    Args:
        tokens: as `sql_tokens.tokenize` returns them.
    """
    parts: list[_Part] = []
    for start, end, quoted in tokens:
        source = masked[start:end]
        spaced = masked[max(start - 1, 0)].isspace()
        if quoted is not None:
            parts.append(_Part(source, '"', quoted, spaced))
            continue
        text = " ".join(source.split())
        if text.upper() in ("TRUE", "FALSE") and not (parts and parts[-1].word in ("IS", "NOT")):
            text = "?"
        if text == "?" and len(parts) > 1 and parts[-1].text in "+-" and parts[-2].word in _BEFORE_SIGN:
            spaced = parts.pop().spaced
        parts.append(_Part(text, text.upper(), text if _IDENTIFIER.match(text) else "", spaced))
    return parts


def _command(parts: list[_Part]) -> str:
    depth, common = 0, False
    for part in parts:
        depth += (part.word == "(") - (part.word == ")")
        first = part.word.partition(" ")[0]
        if common and depth == 0 and first in _BEHIND_WITH:
            return first
        if not common and first == "WITH":
            depth, common = 0, True
        elif not common and first != "(":
            return first if first in COMMANDS else ""
    return "WITH" if common else ""


def _closes(parts: list[_Part]) -> dict[int, int]:
    """Where each parenthesis is closed; behind the end if nowhere."""
    closes, opened = {}, []
    for index, part in enumerate(parts):
        if part.word == "(":
            opened.append(index)
            closes[index] = len(parts)
        elif part.word == ")" and opened:
            closes[opened.pop()] = index
    return closes


def _text(parts: list[_Part]) -> str:
    closes = _closes(parts)
    resume: dict[int, int] = {}  # what is left out: behind this part, go on with that one
    text, index = "", 0
    while index < len(parts) and len(text) < TEXT_MAX:
        part = parts[index]
        text += (" " if part.spaced and text else "") + part.text
        close = closes.get(index + 1)
        if close is not None and part.word == "VALUES":
            resume[close] = _rows_end(parts, closes, close + 1)
        elif close is not None and part.word == "IN":
            resume[_first_of_list(parts, index + 2, close) - 1] = close
        index = resume.get(index, index + 1)
    return text


def _rows_end(parts: list[_Part], closes: dict[int, int], index: int) -> int:
    """Behind the last of the rows that follow the first."""
    while index < len(parts) and parts[index].word == "," and (index + 1 in closes or index + 1 == len(parts)):
        index = closes.get(index + 1, index) + 1
    return index


def _first_of_list(parts: list[_Part], start: int, close: int) -> int:
    """Behind the first of a list of values; behind all of the list if it is of something else."""
    first, depth = close, 0
    for index in range(start, close):
        word = parts[index].word
        if not _OF_LIST.fullmatch(word):
            return close
        depth += (word == "(") - (word == ")")
        if word == "," and depth == 0:
            first = min(first, index)
    return first


def _queries(parts: list[_Part]) -> set[str]:
    """What WITH names: name [(column, ...)] AS [[NOT] MATERIALIZED] (query)."""
    if all(part.word != "WITH" for part in parts):
        return set()
    opens = {close: index for index, close in _closes(parts).items()}
    named = [opens.get(index - 1, index) - 1 for index, part in enumerate(parts) if part.word == "AS"]
    return {parts[index].identifier.casefold() for index in named if index >= 0}


def _collection(parts: list[_Part]) -> str:
    command, queries = _command(parts), _queries(parts)
    tables: dict[str, str] = {}
    frames = [""]  # of each open parenthesis: "reads" where FROM brings tables, "lists" where a comma brings one more
    expected = ""  # "read": a table's name comes, or a function's; "changed": a table's, perhaps with columns behind it
    index = 0
    while index < len(parts):
        before, part = parts[index - 1].word if index else "", parts[index]
        index += 1
        behind = parts[index].word if index < len(parts) else ""
        first, _, last = part.word.partition(" ")
        if first == "(":
            frames.append("")
        elif first in (")", ";"):
            frames, expected = (first == ")" and frames[:-1]) or [""], ""
        elif first == ",":
            expected = "read" if frames[-1] == "lists" else ""
        elif first in ("SELECT", "DELETE"):
            frames[-1], expected = "reads", ""
        elif first in _ENDS_TABLES:
            frames[-1], expected = frames[-1] and "reads", ""
        elif first == "FROM" and frames[-1] and before != "DISTINCT":  # IS DISTINCT FROM
            frames[-1], expected = "lists", "read"
        elif first in ("JOIN", "STRAIGHT_JOIN", "USING"):
            expected = "read" if first != "USING" or behind != "(" else ""
        elif (first in _CHANGES and before in _BEFORE_COMMAND and behind != "(") or (
            not expected and (last or first) in ("TABLE", "TABLES") and command in _OF_TABLES
        ):
            frames[-1], expected = "" if command in _OF_ONE_TABLE else "lists", "changed"
        elif expected and first not in _BEFORE_TABLE:
            name = part.identifier
            while index + 1 < len(parts) and parts[index].word == "." and parts[index + 1].identifier:
                name += "." + parts[index + 1].identifier
                index += 2
            behind = parts[index].word if index < len(parts) else ""
            if name and name.casefold() not in queries and behind != "." and (expected, behind) != ("read", "("):
                tables.setdefault(name.casefold(), name)
            expected = ""
    return tables.popitem()[1] if len(tables) == 1 else ""
