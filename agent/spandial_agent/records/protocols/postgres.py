"""PostgreSQL's protocol 3.0: what a client asks, what the server answers ("Message Formats" of its documentation)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from spandial_agent.records.protocols.database import NAMESPACE_MAX, Operation, Outcome
from spandial_agent.records.protocols.statement import COMMANDS, read_statement

__all__ = ["Statements", "parse_reply"]

_STATEMENTS_MAX = 256
_NAME_MAX = 255  # bytes; a longer name is not remembered
_HEADER = 5  # type, and the length of all but the type
_END_MAX = 256  # bytes of a reply's end that are looked at

_SQLSTATE = re.compile(rb"[0-9A-Z]{5}")
# A server's error has its code before its message, and line and routine of its source last. Then ReadyForQuery.
_ERROR_END = re.compile(rb"(?:\0(C[0-9A-Z]{5})\0M[^\0]*\0.*)?\0L[0-9]+\0R\w+\0\0Z\0\0\0\x05[ITE]\Z", re.DOTALL)
_RETURNING = {"SELECT", "FETCH"}  # whose count is of rows that were returned
_COUNT = re.compile(r"[0-9]{1,18}", re.ASCII)
_FAILED = b"Z\0\0\0\x05E"  # ReadyForQuery in a failed transaction


class Statements:
    """What is prepared on one connection: the last 256 statements, by name. The unnamed one is one of them.

    Attributes:
        namespace: the database, where the session's beginning was seen.
    """

    def __init__(self) -> None:
        self.namespace = ""
        self._known: dict[bytes, Operation] = {}

    def __len__(self) -> int:
        return len(self._known)

    def begin(self, startup: bytes, cut: bool = False) -> None:
        """A StartupMessage: the database that it names, or else its user's.

        Args:
            cut: its end is missing.
        """
        fields = startup[8:].split(b"\0")
        named = dict(zip(fields[0::2], fields[1::2]))
        database = named.get(b"database", b"") or named.get(b"user", b"")
        self.namespace = "" if cut else database.decode("utf-8", "backslashreplace")[:NAMESPACE_MAX]

    def remember(self, parse: bytes) -> None:
        """A Parse message. One whose name is cut off is ignored."""
        if parse[:1] != b"P":
            return
        name, ended, rest = _body(parse).partition(b"\0")
        if not ended or len(name) > _NAME_MAX:
            return
        statement, ended, _ = rest.partition(b"\0")
        self._known.pop(name, None)
        self._known[name] = read_statement(statement, "postgres", bool(ended))
        if len(self._known) > _STATEMENTS_MAX:
            del self._known[next(iter(self._known))]

    def operation(self, message: bytes) -> Operation:
        """What a Query, a Parse (which is remembered too), or a Bind asks for. Whatever follows it is not read."""
        body = _body(message)
        match message[:1]:
            case b"Q":
                statement, ended, _ = body.partition(b"\0")
                return read_statement(statement, "postgres", bool(ended))
            case b"P":
                self.remember(message)
                name, ended, _ = body.partition(b"\0")
            case b"B":
                _portal, _, rest = body.partition(b"\0")
                name, ended, _ = rest.partition(b"\0")
            case _:
                name, ended = b"", b""
        known = self._known.get(name) if ended else None
        return known or Operation()


def parse_reply(first: bytes, last: bytes) -> Outcome:
    """What the beginning and the end of a reply say; the two may overlap.

    An error behind so many rows that its code is in neither has none.
    """
    end = [*_end(last[-_END_MAX:])]
    for kind, body in [*_messages(first), *end]:
        if kind == b"E":
            return Outcome(error=True, code=_sqlstate(body))
    late = _ERROR_END.search(last[-_END_MAX:])
    if late or last.endswith(_FAILED):
        return Outcome(error=True, code=_sqlstate(late[1] or b"") if late else "")
    return _completed(end[0][1]) if end else Outcome()


def _completed(tag: bytes) -> Outcome:
    """A CommandComplete's tag: the command, and how many rows it returned or changed."""
    words = tag.rstrip(b"\0").decode("ascii", "replace").split(" ")
    command, count = words[0], words[-1]
    if command not in COMMANDS:
        return Outcome()
    return Outcome(command=command, rows=int(count) if command in _RETURNING and _COUNT.fullmatch(count) else None)


def _body(message: bytes) -> bytes:
    """What is there of a message behind its header."""
    return message[_HEADER : 1 + int.from_bytes(message[1:_HEADER], "big")]


def _messages(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Type and body of each message. The last one's may be cut off."""
    while len(data) >= _HEADER:
        length = int.from_bytes(data[1:_HEADER], "big")
        if length < 4:
            return
        yield data[:1], data[_HEADER : 1 + length]
        data = data[1 + length :]


def _end(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The messages from the last CommandComplete or ErrorResponse on, if they end where the data ends."""
    for start in range(len(data) - _HEADER, -1, -1):
        at = start
        while at + _HEADER <= len(data) and (length := int.from_bytes(data[at + 1 : at + _HEADER], "big")) >= 4:
            at += 1 + length
        if at == len(data) and data[start] in b"CE":
            return _messages(data[start:])
    return iter(())


def _sqlstate(fields: bytes) -> str:
    """Field C of an ErrorResponse ("Error and Notice Message Fields")."""
    for field in fields.split(b"\0"):
        if field[:1] == b"C":
            return field[1:].decode("ascii") if _SQLSTATE.fullmatch(field[1:]) else ""
    return ""
