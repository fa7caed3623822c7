"""PostgreSQL's messages, as psycopg 3 and a server of version 15 wrote them."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from spandial_agent.records.protocols.database import RAW_MAX, TEXT_MAX, Operation, Outcome
from spandial_agent.records.protocols.postgres import Statements, parse_reply

READY = b"Z\0\0\0\x05I"

QUERY = b"Q\0\0\0PINSERT INTO users VALUES (3, 'it''s secret', true), (4, E'sec\\'ret', false)\0"
# Parse, Bind, Describe, Execute, Sync.
UNNAMED = (
    b"P\0\0\0@\0SELECT * FROM users WHERE id IN ($1, $2, $3)\0\0\x03\0\0\0\x15\0\0\0\x15\0\0\0\x15"
    b"B\0\0\0&\0\0\0\x03\0\x01\0\x01\0\x01\0\x03\0\0\0\x02\0\x01\0\0\0\x02\0\x02\0\0\0\x02\0\x03\0\x01\0\0"
    b"D\0\0\0\x06P\0E\0\0\0\t\0\0\0\0\0S\0\0\0\x04"
)
NAMED = b"P\0\0\0K_pg3_0\0SELECT name FROM users WHERE name <> $1 -- secret comment\0\0\x01\0\0\0\0S\0\0\0\x04"
BIND = b"B\0\0\0 \0_pg3_0\0\0\x01\0\0\0\x01\0\0\0\x06secret\0\x01\0\0D\0\0\0\x06P\0E\0\0\0\t\0\0\0\0\0S\0\0\0\x04"

ERROR = (
    b'E\0\0\0jSERROR\0VERROR\0C42P01\0Mrelation "nowhere" does not exist\0P15\0Fparse_relation.c\0L1392\0'
    b"RparserOpenTable\0\0" + READY
)
ROWS = (
    b"1\0\0\0\x042\0\0\0\x04T\0\0\0\x1d\0\x01text\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0"
    + b"D\0\0\0\x11\0\x01\0\0\0\x07secret0" * 4
    + b"C\0\0\0\rSELECT 4\0"
    + READY
)
NOTICE = (
    b'N\0\0\0rSNOTICE\0VNOTICE\0C00000\0Mtable "nowhere" does not exist, skipping\0Ftablecmds.c\0L1310\0'
    b"RDropErrorMsgNonExistent\0\0C\0\0\0\x0fDROP TABLE\0" + READY
)
LATE_ERROR = (
    b"T\0\0\0!\0\x01?column?\0\0\0\0\0\0\0\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0"
    + b"D\0\0\0\x0b\0\x01\0\0\0\x010" * 4999
    + b"E\0\0\0ASERROR\0VERROR\0C22012\0Mdivision by zero\0Fint.c\0L869\0Rint4div\0\0"
    + READY
)


def reply(whole: bytes) -> Outcome:
    """As the kernel hands it over."""
    return parse_reply(whole[:128], whole[-64:])


def parse(name: bytes, statement: bytes) -> bytes:
    body = name + b"\0" + statement + b"\0\0\0"
    return b"P" + (len(body) + 4).to_bytes(4, "big") + body


def bind(name: bytes) -> bytes:
    body = b"\0" + name + b"\0\0\0\0\0\0\0"
    return b"B" + (len(body) + 4).to_bytes(4, "big") + body


@pytest.mark.parametrize(
    ("fields", "namespace"),
    [
        (b"user\0app\0database\0shop\0application_name\0psql\0\0", "shop"),
        (b"user\0app\0\0", "app"),
        (b"user\0app\0database\0\0\0", "app"),
        (b"", ""),
        (b"database", ""),
        (b"database\0" + b"x" * 100 + b"\0\0", "x" * 64),
    ],
)
def test_a_session_names_its_database(fields: bytes, namespace: str) -> None:
    statements = Statements()
    startup = (8 + len(fields)).to_bytes(4, "big") + b"\0\3\0\0" + fields
    statements.begin(startup)
    assert statements.namespace == namespace
    statements.begin(startup, cut=True)
    assert statements.namespace == ""


def test_a_simple_query() -> None:
    assert Statements().operation(QUERY) == Operation(
        name="INSERT",
        collection="users",
        text="INSERT INTO users VALUES (?, ?, ?)",
        raw=QUERY[5:-1].decode(),
        complete=True,
    )


def test_an_unnamed_statement_also_for_those_that_bind_it_later() -> None:
    statements = Statements()
    operation = statements.operation(UNNAMED)
    assert operation[:3] == ("SELECT", "users", "SELECT * FROM users WHERE id IN ($1)")
    assert operation.complete
    assert statements.operation(bind(b"")) == operation
    statements.operation(parse(b"", b"COMMIT"))
    assert statements.operation(bind(b"")).name == "COMMIT"


def test_a_bind_asks_for_the_statement_that_it_names() -> None:
    statements = Statements()
    statements.remember(NAMED)
    operation = statements.operation(BIND)
    assert operation[:3] == ("SELECT", "users", "SELECT name FROM users WHERE name <> $1")
    assert operation.raw == "SELECT name FROM users WHERE name <> $1 -- secret comment"
    assert operation.complete
    assert statements.operation(BIND[: len(b"B\0\0\0 \0_pg3_0\0")]) == operation


def test_a_bind_of_an_unknown_statement_is_an_unknown_operation() -> None:
    statements = Statements()
    statements.remember(parse(b"b", b"COMMIT"))
    assert statements.operation(bind(b"a")) == Operation()


def test_a_name_means_what_was_parsed_last() -> None:
    statements = Statements()
    statements.remember(parse(b"a", b"SELECT 1"))
    statements.remember(parse(b"a", b"COMMIT"))
    assert statements.operation(bind(b"a")).name == "COMMIT"


def test_the_statement_that_was_parsed_first_is_forgotten_first() -> None:
    statements = Statements()
    for number in range(300):
        statements.remember(parse(b"s%d" % number, b"COMMIT"))
        if number in (0, 200):
            statements.remember(parse(b"again", b"COMMIT"))
    known = [number for number in range(300) if statements.operation(bind(b"s%d" % number)).name]
    assert known == list(range(45, 300))
    assert statements.operation(bind(b"again")).name == "COMMIT"


def test_a_name_that_is_cut_off_is_not_remembered() -> None:
    statements = Statements()
    for length in range(len(NAMED) - len(NAMED.partition(b"\0SELECT")[2]) - len(b"SELECT")):
        statements.remember(NAMED[:length])
        assert statements.operation(BIND).text == ""


@pytest.mark.parametrize("message", [QUERY, UNNAMED[:65], parse(b"named", b"SELECT 'secret'")])
def test_every_beginning_of_a_message_tells_nothing_secret_and_that_it_is_one(message: bytes) -> None:
    for length in range(len(message)):
        operation = Statements().operation(message[:length])
        assert "sec" not in operation.text
        assert Statements().operation(message).text.startswith(operation.text.removesuffix("(?"))
    assert not Statements().operation(QUERY[:-1]).complete
    assert not Statements().operation(parse(b"", b"SELECT a")[:-3]).complete


@pytest.mark.parametrize(
    ("whole", "expected"),
    [
        (ERROR, Outcome(error=True, code="42P01")),
        (b"1\0\0\0\x04" + ERROR, Outcome(error=True, code="42P01")),
        (ROWS, Outcome(command="SELECT", rows=4)),
        (NOTICE, Outcome(command="DROP")),
        (LATE_ERROR, Outcome(error=True, code="22012")),
        (LATE_ERROR.replace(b"R" + b"int4div", b"R" + b"a" * 60), Outcome()),
        (LATE_ERROR.replace(b"division by zero", b"x" * 60), Outcome(error=True)),
        (LATE_ERROR[:-1] + b"E", Outcome(error=True, code="22012")),
        (b"D" * 200 + b"Z\0\0\0\x05E", Outcome(error=True)),
        (b"1\0\0\0\x042\0\0\0\x04n\0\0\0\x04C\0\0\0\x0fINSERT 0 2\0" + READY, Outcome(command="INSERT")),
        (b"C\0\0\0\x08SET\0S\0\0\0\x1capplication_name\0secret\0" + READY, Outcome(command="SET")),
        (b"C\0\0\0\nBEGIN\0C\0\0\0\rUPDATE 3\0" + READY, Outcome(command="UPDATE")),
        (b"1\0\0\0\x04" * 40 + b"C\0\0\0\x0bCOMMIT\0" + READY, Outcome(command="COMMIT")),
        (b"1\0\0\0\x04" * 40 + b"C\0\0\0\rDELETE 1\0", Outcome(command="DELETE")),
        (b"C\0\0\0\x11CREATE TABLE\0" + READY, Outcome(command="CREATE")),
        (b"C\0\0\0\x0cFETCH 0\0" + READY, Outcome(command="FETCH", rows=0)),
        (b"C\0\0\0\x0cSELECT \0" + READY, Outcome(command="SELECT")),
        (b"I\0\0\0\x04" + READY, Outcome()),
        (b"G\0\0\0\r\0\0\x03\0\0\0\0\0\0", Outcome()),
        (b"C\0\0\0\rsecret 4\0" + READY, Outcome()),
        (b"", Outcome()),
    ],
)
def test_replies(whole: bytes, expected: Outcome) -> None:
    assert reply(whole) == expected


@pytest.mark.parametrize("whole", [ERROR, ROWS, NOTICE])
def test_a_reply_that_is_cut_off_is_not_told_wrong(whole: bytes) -> None:
    told = reply(whole)
    for length in range(len(whole)):
        part = reply(whole[:length])
        assert part.error == (told.error and length >= 5)
        assert part.code in ("", told.code)


@given(st.binary(max_size=300) | st.tuples(st.sampled_from([b"Q", b"P", b"B", b"E"]), st.binary()).map(b"".join))
@example(b"Q\0\0\0\0")
@example(b"P\xff\xff\xff\xff\0")
@example(b"B\0\0\0\x04")
@example(b"Q\0\0\x10\0" + b"(" * 4096)
def test_no_bytes_make_it_raise(data: bytes) -> None:
    statements = Statements()
    statements.remember(data)
    operation = statements.operation(data)
    assert len(operation.text) <= TEXT_MAX
    assert len(operation.raw) <= RAW_MAX
    outcome = parse_reply(data, data)
    assert outcome.code == "" or len(outcome.code) == 5
    assert parse_reply(data, b"").error <= (b"E" in data)


@given(st.integers(0, 2**31), st.binary(max_size=150), st.binary(max_size=100))
def test_no_rows_look_like_an_error(rows: int, begin: bytes, end: bytes) -> None:
    tag = b"SELECT %d\0" % rows
    row = b"D" + (len(end) + 4).to_bytes(4, "big") + end
    whole = b"D" + (len(begin) + 4).to_bytes(4, "big") + begin + row + b"C\0\0\0" + bytes([len(tag) + 4]) + tag + READY
    assert reply(whole) in (Outcome(command="SELECT", rows=rows), Outcome())  # rows may hide the tag
