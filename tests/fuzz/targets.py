"""What is fuzzed: for each decoder, whatever the bytes are, it does not raise and what it says is bounded.

A target takes any bytes. Its seeds are where the fuzzer starts from. `run` fuzzes them for as long as one likes,
`test_targets.py` tries each for a moment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from spandial_agent.records.protocols import mysql, postgres, redis
from spandial_agent.records.protocols.database import RAW_MAX, TEXT_MAX, Operation, Outcome
from spandial_agent.records.protocols.http1 import parse_request_line, parse_status
from spandial_agent.records.protocols.http2 import HeaderBlocks, read_request, read_response
from spandial_agent.records.protocols.statement import Dialect, read_statement, strip_literals

__all__ = ["TARGETS", "Target"]

_COLLECTION_MAX = 128  # characters
_NAME_MAX = 65  # characters: two words of 32
_CODE_MAX = 32  # characters
_ESCAPED = 4  # characters that a byte which is no UTF-8 is shown as


class Target(NamedTuple):
    run: Callable[[bytes], None]
    seeds: list[bytes]


def _check_operation(operation: Operation) -> None:
    assert len(operation.name) <= _NAME_MAX
    assert len(operation.collection) <= _COLLECTION_MAX
    assert len(operation.text) <= TEXT_MAX
    assert len(operation.raw) <= RAW_MAX
    assert operation.arguments >= 0


def _check_outcome(outcome: Outcome) -> None:
    assert len(outcome.code) <= _CODE_MAX
    assert outcome.error or not outcome.code


def _parts(data: bytes) -> list[bytes]:
    """The data cut where it says so: a byte is the length of the part behind it, in units of eight."""
    parts = []
    while data:
        length = data[0] * 8
        parts.append(data[1 : 1 + length])
        data = data[1 + length :]
    return parts


def http1(data: bytes) -> None:
    method, path = parse_request_line(data)
    assert len(method) + len(path) <= _ESCAPED * len(data) + 1
    assert not set("\n ?") & set(path)
    status = parse_status(data)
    assert status is None or 100 <= status <= 999


def http2(data: bytes) -> None:
    """The header blocks of a connection, which is new if bit 0 of the first byte is set. Of each part's first byte,
    bit 0 says that the part is cut off, bit 1 that blocks before it are missing, and bit 2 that nobody knows how many.
    """
    blocks = HeaderBlocks(fresh=bool(data[:1] and data[0] & 1))
    for part in _parts(data[1:]):
        how = part[0] if part else 0
        if how & 2:
            blocks.skip(None if how & 4 else how << 8)
        headers = blocks.decode(part[1:], cut=bool(how & 1))
        assert sum(len(name) + len(value) for name, value in headers.fields) <= _ESCAPED << 16
        assert len(headers.fields) + headers.unknown <= len(part)
        assert not (headers.complete and how & 1)
        request = read_request(headers)
        assert "?" not in request.path
        response = read_response(headers)
        assert response.grpc_status is None or 0 <= response.grpc_status <= 16


def postgresql(data: bytes) -> None:
    statements = postgres.Statements()
    parts = _parts(data)
    for part in parts:
        statements.remember(part)
        statements.begin(part)
        _check_operation(statements.operation(part))
    for first, last in zip(parts, [*parts[1:], b""]):
        outcome = postgres.parse_reply(first, last)
        _check_outcome(outcome)
        assert len(outcome.code) in (0, 5)


def mysql_mariadb(data: bytes) -> None:
    """Bit 0 of each part's first byte says that it is cut off."""
    statements = mysql.Statements()
    parts = _parts(data)
    for part, answer in zip(parts, [*parts[1:], b""]):
        cut = bool(part[:1] and part[0] & 1)
        statements.remember(part[1:], answer, cut)
        for payload in (part[1:], answer):
            statements.name(payload, cut)
            operation = statements.operation(payload, cut)
            _check_operation(operation)
        statements.forget(answer)
        _check_outcome(mysql.parse_reply(part, answer))


def redis_command(data: bytes) -> None:
    _check_operation(redis.parse_command(data))
    _check_outcome(redis.parse_reply(data))


def statement(data: bytes) -> None:
    """Bit 0 of the first byte says which dialect, bit 1 that the end is missing."""
    how = data[0] if data else 0
    dialect: Dialect = "mysql" if how & 1 else "postgres"
    operation = read_statement(data[1:], dialect, not how & 2)
    _check_operation(operation)
    name, collection, text = strip_literals(data[1:].decode("utf-8", "surrogateescape"), dialect, bool(how & 2))
    assert (name, collection, text) == operation[:3] or len(data) > 2048


def _part(data: bytes) -> bytes:
    """As `_parts` reads it, with zeros behind."""
    units = (len(data) + 7) // 8
    return bytes([units]) + data.ljust(units * 8, b"\0")


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + (len(body) + 4).to_bytes(4, "big") + body


_SELECT = b"SELECT a, \"b\" FROM t WHERE c = 'x''y' AND d IN (1, -2.5e3) -- why\n"
_UPDATE = b'UPDATE `t` SET a = "x\\"y", b = 0x1F /*! STRAIGHT */ WHERE c LIKE \'%z\' # why\n'
_BLOCK = bytes.fromhex("828684418cf1e3c2e5f23a6ba0ab90f4ff0f0a0661636365707403782f794008782d6c6f6e6765720179")

TARGETS = {
    "http1": Target(
        http1,
        [
            b"GET /pay?card=1 HTTP/1.1\r\nhost: x\r\n\r\n",
            b"GET http://shop/pay HTTP/1.1\r\n",
            b"HTTP/1.1 404 Not Found\r\n",
        ],
    ),
    "http2": Target(http2, [b"\1" + _part(b"\0" + _BLOCK) * 2, b"\0" + _part(b"\1" + _BLOCK) + _part(b"\6\xbe\xbf")]),
    "postgres": Target(
        postgresql,
        [
            _part(_message(b"Q", _SELECT + b"\0")),
            _part(_message(b"P", b"a\0" + _SELECT + b"\0\0\0")) + _part(_message(b"B", b"\0a\0\0\0\0\0\0\0")),
            _part(_message(b"E", b"SERROR\0C42P01\0Mno table\0\0") + b"Z\0\0\0\5E"),
            _part(_message(b"D", bytes(20)) + _message(b"C", b"SELECT 5\0") + b"Z\0\0\0\5I"),
        ],
    ),
    "mysql": Target(
        mysql_mariadb,
        [
            _part(b"\0\3" + _UPDATE) + _part(b"\7\0\0\1\0\1\0\2\0\0\0"),
            _part(b"\0\x16SELECT a FROM t WHERE b = ?") + _part(b"\x0c\0\0\1\0\1\0\0\0\1\0\1\0\0\0\0"),
            _part(b"\0\x17\1\0\0\0\0\1\0\0\0") + _part(b"\x17\0\0\1\xff\x7a\4#42S02no such table"),
            _part(b"\0\3\1\1\0\1\xfd\0\1a\3xyzSELECT 1"),
        ],
    ),
    "redis": Target(
        redis_command,
        [
            b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$2\r\nbc\r\n",
            b"set a 'b c'\r\n",
            b"-WRONGTYPE Operation\r\n",
            b"!5\r\nERR x\r\n",
        ],
    ),
    "statement": Target(
        statement, [b"\0" + _SELECT, b"\1" + _UPDATE, b"\2SELECT $tag$ x $tag$, U&'y' /* /* */ */ FROM"]
    ),
}
