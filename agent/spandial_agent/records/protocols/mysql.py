"""MySQL's and MariaDB's protocol: what a client asks, and what the server answers ("Client/Server Protocol")."""

from __future__ import annotations

import re

from spandial_agent.records.protocols.database import NAMESPACE_MAX, Operation, Outcome
from spandial_agent.records.protocols.statement import read_statement

__all__ = ["Statements", "parse_reply"]

_STATEMENTS_MAX = 256
_HEADER = 4  # of a packet: the payload's length in three bytes, a sequence number

_INIT_DB = 0x02
_QUERY = 0x03
_CHANGE_USER = 0x11
_PREPARE = 0x16
_EXECUTE = 0x17
_CLOSE = 0x19
_BULK = 0xFA  # COM_STMT_BULK_EXECUTE of MariaDB

# "Capability flags", and where the user's name is in the answer to a greeting.
_CONNECT_WITH_DB, _SECURE_CONNECTION, _LENENC_AUTH = 0x8, 0x8000, 0x200000
_USER_AT = 32
_USE = re.compile(rb"use\s*(?:`((?:[^`]|``)+)`|\s([^\s;`]+))\s*;?\s*\Z", re.IGNORECASE)

_OK = 0x00
_ERROR = 0xFF
_PROGRESS = b"\xff\xff\xff"  # MariaDB: an error without a number is a report of progress, and the answer follows
_END_MAX = 256  # bytes of a reply's end that are looked at

# Types of the binary protocol: how many bytes a value has, or that it begins with that number (strings, times).
_SIZES = {1: 1, 2: 2, 3: 4, 4: 4, 5: 8, 6: 0, 8: 8, 9: 4, 13: 2}
_MEASURED = {0, 7, 10, 11, 12, 15, 16, *range(245, 256)}
# An ERR packet behind rows, which have no such beginning: 0xff begins no length.
_LATE_ERROR = re.compile(rb"\xff..#[0-9A-Z]{5}", re.DOTALL)


class Statements:
    """What is prepared on one connection: the last 256 statements, by number.

    Attributes:
        namespace: the database, where it was seen to be named.
    """

    def __init__(self) -> None:
        self.namespace = ""
        self._known: dict[bytes, Operation] = {}

    def __len__(self) -> int:
        return len(self._known)

    def name(self, message: bytes, cut: bool = False) -> None:
        """A message that names the database of what follows: COM_INIT_DB, COM_CHANGE_USER or a COM_QUERY of USE, from
        the command byte on; or the answer to the server's greeting, behind its sequence number, 1.

        Args:
            cut: its end is missing.
        """
        named = b"" if cut else _namespace(message)
        self.namespace = named.decode("utf-8", "backslashreplace")[:NAMESPACE_MAX]

    def remember(self, prepare: bytes, reply: bytes, cut: bool = False) -> None:
        """COM_STMT_PREPARE from its command byte on, and the first bytes of the answer, which has the number.

        Args:
            cut: the command's end is missing.
        """
        number = reply[_HEADER + 1 : _HEADER + 5]  # COM_STMT_PREPARE_OK
        if prepare[:1] != bytes([_PREPARE]) or reply[_HEADER : _HEADER + 1] != bytes([_OK]) or len(number) < 4:
            return
        self._known.pop(number, None)
        self._known[number] = read_statement(prepare[1:], "mysql", not cut)
        if len(self._known) > _STATEMENTS_MAX:
            del self._known[next(iter(self._known))]

    def forget(self, close: bytes) -> None:
        """COM_STMT_CLOSE from its command byte on."""
        if close[:1] == bytes([_CLOSE]):
            self._known.pop(close[1:5], None)

    def operation(self, payload: bytes, cut: bool = False) -> Operation:
        """What COM_QUERY, COM_STMT_EXECUTE or COM_STMT_BULK_EXECUTE, from the command byte on, asks for.

        Args:
            cut: the end of the query is missing. A packet does not say so once its header is gone.
        """
        command = payload[0] if payload else None
        if command == _QUERY:
            start = _query_start(payload)
            if start <= len(payload):
                operation = read_statement(payload[start:], "mysql", not cut)
                if operation.name == "USE":
                    self.name(payload, cut)
                return operation
        elif command in (_EXECUTE, _BULK) and payload[1:5] in self._known:
            return self._known[payload[1:5]]
        return Operation()


def parse_reply(first: bytes, last: bytes) -> Outcome:
    """What the beginning and the end of a reply say; the two may overlap.

    An error behind the first rows is told if all of its packet is in the end.
    """
    payload = _payload(first)
    while payload.startswith(_PROGRESS):
        first = first[_HEADER + len(payload) :]
        payload = _payload(first)
    kind = payload[0] if payload else None
    if kind == _ERROR:
        return Outcome(error=True, code=_number(payload))
    if kind == _OK:
        return Outcome()
    last = last[-_END_MAX:]
    for start in range(len(last)):
        payload = last[start + _HEADER :]
        if int.from_bytes(last[start : start + 3], "little") == len(payload) and _LATE_ERROR.match(payload):
            return Outcome(error=True, code=_number(payload))
    return Outcome()


def _namespace(message: bytes) -> bytes:
    """What is not there, or cannot be understood, is empty."""
    kind, body = message[:1], message[1:]
    if kind == bytes([_INIT_DB]):
        return body
    if kind == bytes([_QUERY]):
        use = _USE.match(message[_query_start(message) :])
        return (use[1] or b"").replace(b"``", b"`") or use[2] or b"" if use else b""
    if kind == bytes([_CHANGE_USER]):
        _, _, rest = body.partition(b"\0")
        return rest[1 + rest[0] :].partition(b"\0")[0] if rest else b""
    capabilities = int.from_bytes(body[:4], "little")
    if kind != b"\1" or not capabilities & _CONNECT_WITH_DB:
        return b""
    at = body.find(b"\0", _USER_AT) + 1
    if not at:
        return b""
    if capabilities & _LENENC_AUTH:
        length, at = _integer(body, at)
        at += length
    elif capabilities & _SECURE_CONNECTION:
        at += 1 + (body[at] if at < len(body) else 0)
    else:
        at = body.find(b"\0", at) + 1
    return body[at:].partition(b"\0")[0] if at else b""


def _payload(packets: bytes) -> bytes:
    """What is there of the first packet's payload."""
    return packets[_HEADER : _HEADER + int.from_bytes(packets[:3], "little")]


def _number(error: bytes) -> str:
    """The number in an ERR packet."""
    return str(int.from_bytes(error[1:3], "little")) if len(error) >= 3 else ""


def _integer(data: bytes, at: int) -> tuple[int, int]:
    """The length-encoded integer there, and where it ends; beyond the data if it is cut off."""
    first = data[at] if at < len(data) else 0
    size = {0xFC: 2, 0xFD: 3, 0xFE: 8}.get(first, 0)
    return (int.from_bytes(data[at + 1 : at + 1 + size], "little") if size else first), at + 1 + size


def _query_start(payload: bytes) -> int:
    """Where the text of a COM_QUERY begins; beyond the payload if that cannot be known.

    Before it, there may be attributes (CLIENT_QUERY_ATTRIBUTES of MySQL): how many, the number of their sets, which is
    1, and unless there are none which of them are NULL, 1, type and name of each, the values. No text begins with a
    character before the tab, or has 1 second.
    """
    if payload[2:3] != b"\x01":
        return 1 if payload[1:2] >= b"\t" else len(payload) + 1
    count = payload[1]
    if not count:
        return 3
    nulls = 3
    at = nulls + (count + 7) // 8 + 1
    types = []
    for _ in range(count):
        types.append(payload[at] if at < len(payload) else 0)
        length, at = _integer(payload, at + 2)
        at += length
    for index, kind in enumerate(types):
        if at < len(payload) and not payload[nulls + index // 8] >> index % 8 & 1:
            if kind not in _SIZES and kind not in _MEASURED:
                return len(payload) + 1
            size, at = (_SIZES[kind], at) if kind in _SIZES else _integer(payload, at)
            at += size
    return at
