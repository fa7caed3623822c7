"""MySQL's packets, as PyMySQL and a MariaDB server wrote them."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from spandial_agent.records.protocols.database import NAMESPACE_MAX, RAW_MAX, TEXT_MAX, Operation, Outcome
from spandial_agent.records.protocols.mysql import Statements, parse_reply

INSERT = b"\x03INSERT INTO users VALUES (1,'secret\\'one\\\\',X'6200ff736563'),(2,'sec\\\"ret',X'78')"
SELECT = b'\x03SELECT `name` FROM users WHERE name <> "secret" AND id IN (1,2) # secret'
PREPARE = b"\x16SELECT name FROM users WHERE id = ? AND name <> 'secret'"
PREPARED = b"\x0c\0\0\x01\0\x01\0\0\0\x01\0\x01\0\0\0\0\x17\0\0\x02\x03def\0\0\0\x01?\0\x0c?\0\0\0\0\0\x06\x80\0\0\0\0"
EXECUTE = b"\x17\x01\0\0\0\0\x01\0\0\0\0\x01\x03\0\x01\0\0\0"
CLOSE = b"\x19\x01\0\0\0"

UPDATED = b"0\0\0\x01\0\x04\0\x02\0\0\0(Rows matched: 4  Changed: 4  Warnings: 0"
DUPLICATE = b".\0\0\x01\xff&\x04#23000Duplicate entry '1' for key 'PRIMARY'"
SET_OF_ROWS = (
    b"\x01\0\0\x01\x01)\0\0\x02\x03def\x01d\x05users\x05users\x04name\x04name\x0c-\0\x8c\x01\0\0\xfd\0\0\0\0\0"
    b"\x05\0\0\x03\xfe\0\0\x02\0\x0c\0\0\x04\x0bsecret'one\\\x08\0\0\x05\x07sec\"ret\x05\0\0\x06\xfe\0\0\x02\0"
)
LATE_ERROR = (
    SET_OF_ROWS[:-9] + b"\x04\0\0\xa3\x011\x011" * 60 + b")\0\0\xa5\xff\xda\x04#21000Subquery returns more than 1 row"
)


def reply(whole: bytes) -> Outcome:
    """As the kernel hands it over."""
    return parse_reply(whole[:128], whole[-64:])


def prepared(number: int) -> bytes:
    return b"\x0c\0\0\x01\0" + number.to_bytes(4, "little") + b"\0\0\0\0\0\0\0"


def execute(number: int) -> bytes:
    return b"\x17" + number.to_bytes(4, "little") + b"\0\x01\0\0\0"


def test_a_query() -> None:
    assert Statements().operation(INSERT) == Operation(
        name="INSERT",
        collection="users",
        text="INSERT INTO users VALUES (?,?,?)",
        raw=INSERT[1:].decode(),
        complete=True,
    )
    assert Statements().operation(SELECT)[:3] == (
        "SELECT",
        "users",
        "SELECT `name` FROM users WHERE name <> ? AND id IN (?)",
    )


def test_whoever_says_that_a_query_is_cut_off_is_believed() -> None:
    assert Statements().operation(b"\x03SELECT a FROM orde", cut=True) == Operation(
        name="SELECT", text="SELECT a FROM", raw="SELECT a FROM orde"
    )


@pytest.mark.parametrize(
    "attributes",
    [
        b"\0\x01",
        # How many, 1, which are NULL, 1, types and names, values: a string, NULL, two integers, a date and a blob.
        b"\x01\x01\0\x01\x0f\0\x01a\x06secret",
        b"\x01\x01\x01\x01\x0f\0\x01a",
        b"\x03\x01\x02\x01\x03\x80\x01a\xfe\0\x0btraceparent\x08\0\0\x07\0\0\0" + b"\x08" * 8,
        b"\x02\x01\0\x01\x0c\0\x01a\xfd\0\0\x04\xe4\x07\x01\x02\xfc\x06\0secret",
        b"\x09\x01\xff\x01\x01" + b"\x06\0\0" * 9,
    ],
)
def test_attributes_before_a_query_are_passed_over(attributes: bytes) -> None:
    whole = b"\x03" + attributes + b"SELECT a FROM t WHERE b = 'secret'"
    operation = Statements().operation(whole)
    assert operation[:3] == ("SELECT", "t", "SELECT a FROM t WHERE b = ?")
    for length in range(len(whole)):
        part = Statements().operation(whole[:length], cut=True)
        assert operation.text.startswith(part.text)
        assert not part.complete


def test_an_attribute_of_an_unknown_type_hides_the_query() -> None:
    payload = b"\x03\x01\x01\0\x01\x99\0\x01asecret SELECT 1"
    assert Statements().operation(payload) == Operation()


def test_an_execute_asks_for_the_statement_whose_number_it_gives() -> None:
    statements = Statements()
    statements.remember(PREPARE, PREPARED)
    operation = statements.operation(EXECUTE)
    assert operation[:3] == ("SELECT", "users", "SELECT name FROM users WHERE id = ? AND name <> ?")
    assert operation.complete
    assert statements.operation(EXECUTE[:5], cut=True) == operation
    assert statements.operation(b"\xfa" + EXECUTE[1:]) == operation
    assert statements.operation(execute(2)) == Operation()
    assert statements.operation(EXECUTE[:4]).text == ""


def test_a_statement_that_was_cut_off_is_not_complete() -> None:
    statements = Statements()
    statements.remember(PREPARE[:-3], PREPARED, cut=True)
    operation = statements.operation(EXECUTE)
    assert operation.text == "SELECT name FROM users WHERE id = ? AND name <> ?"
    assert not operation.complete


def test_a_closed_statement_is_forgotten() -> None:
    statements = Statements()
    statements.remember(PREPARE, PREPARED)
    statements.forget(b"\x19\x02\0\0\0")
    statements.forget(b"\x17\x01\0\0\0")
    assert statements.operation(EXECUTE).name == "SELECT"
    statements.forget(CLOSE)
    assert statements.operation(EXECUTE).name == ""


@pytest.mark.parametrize("answer", [DUPLICATE, b"", PREPARED[:8], b"\x0c\0\0\x01\x01\x01\0\0\0\x01\0"])
def test_a_statement_that_was_not_prepared_is_not_remembered(answer: bytes) -> None:
    statements = Statements()
    statements.remember(PREPARE, answer)
    assert statements.operation(EXECUTE).name == ""


def test_the_statement_that_was_prepared_first_is_forgotten_first() -> None:
    statements = Statements()
    for number in range(300):
        statements.remember(PREPARE, prepared(number))
        if number in (0, 200):
            statements.remember(PREPARE, prepared(1000))
    known = [number for number in range(300) if statements.operation(execute(number)).name]
    assert known == list(range(45, 300))
    assert statements.operation(execute(1000)).name == "SELECT"


@pytest.mark.parametrize("payload", [INSERT, SELECT])
def test_every_beginning_of_a_query_tells_nothing_secret(payload: bytes) -> None:
    for length in range(len(payload)):
        operation = Statements().operation(payload[:length], cut=True)
        assert "sec" not in operation.text
        assert not operation.complete


@pytest.mark.parametrize(
    ("whole", "expected"),
    [
        (UPDATED, Outcome()),
        (b"\x07\0\0\x01\0\0\0\x02\0\0\0", Outcome()),
        (b"\x0a\0\0\x01\0\xfc\x10\x27\0\x02\0\0\0\0", Outcome()),
        (b"\x0c\0\0\x01\0\xfd\0\0\x01\0\x02\0\0\0\0\0", Outcome()),
        (DUPLICATE, Outcome(error=True, code="1062")),
        (b"\x0c\0\0\x01\xff\xff\xff\x01\x02\x03\0\0\0\x02ab" + DUPLICATE, Outcome(error=True, code="1062")),
        (SET_OF_ROWS, Outcome()),
        (LATE_ERROR, Outcome(error=True, code="1242")),
        (LATE_ERROR.replace(b"1 row", b"1 row" * 9), Outcome()),
        (SET_OF_ROWS[:-9] + b"\x12\0\0\x05\x11....\xff\xda\x04#21000xxx" + SET_OF_ROWS[-9:], Outcome()),
        (SET_OF_ROWS[:-9] + b"\x12\0\0\x05\x11....\xff\xda\x04#21000xxx", Outcome()),
        (b"\x0f\0\0\x01\xfb/tmp/secret.csv", Outcome()),
        (b"\x01\0\0\x01\0", Outcome()),
        (b"\x01\0\0\x01\xff", Outcome(error=True)),
        (b"", Outcome()),
    ],
)
def test_replies(whole: bytes, expected: Outcome) -> None:
    assert reply(whole) == expected


@pytest.mark.parametrize("whole", [UPDATED, DUPLICATE, SET_OF_ROWS])
def test_a_reply_that_is_cut_off_is_not_told_wrong(whole: bytes) -> None:
    told = reply(whole)
    for length in range(len(whole)):
        part = reply(whole[:length])
        assert part.error == (told.error and length >= 5)
        assert part.code in ("", told.code)


def handshake(flags: int, auth: bytes, database: bytes = b"shop\0", user: bytes = b"app\0") -> bytes:
    """An answer to a server's greeting, behind its sequence number ("HandshakeResponse41")."""
    return b"\1" + flags.to_bytes(4, "little") + b"\0\0\0\1-" + bytes(23) + user + auth + database + b"plugin\0"


@pytest.mark.parametrize(
    ("message", "namespace"),
    [
        (handshake(0x8208, b"\x14" + bytes(20)), "shop"),
        (handshake(0x208, b"scramble\0"), "shop"),
        (handshake(0x200208, b"\xfc\x2c\1" + bytes(300)), "shop"),
        (handshake(0x8200, b"\x14" + bytes(20), b""), ""),
        (b"\x02shop", "shop"),
        (b"\x03USE shop", "shop"),
        (b"\x03\0\1use\t`my ``shop`;", "my `shop"),
        (b"\x03use`shop`", "shop"),
        (b"\x03USE shop; SELECT 1", ""),
        (b"\x11app\0\x14" + bytes(20) + b"shop\0-\0", "shop"),
        (b"\x11app\0", ""),
        (b"", ""),
    ],
)
def test_a_session_names_its_database(message: bytes, namespace: str) -> None:
    statements = Statements()
    statements.name(b"\x02earlier")
    assert statements.namespace == "earlier"
    statements.name(message)
    assert statements.namespace == namespace
    statements.name(message, cut=True)
    assert statements.namespace == ""


def test_a_kept_use_names_the_database_of_what_follows() -> None:
    statements = Statements()
    statements.operation(b"\x03USE shop")
    assert statements.namespace == "shop"


COMMANDS = [b"\x01", b"\x03", b"\x03use ", b"\x11", b"\x16", b"\x17", b"\x19"]


@given(
    st.binary(max_size=300)
    | st.binary(max_size=100).map(lambda auth: handshake(0xFFFFFFFF, auth))
    | st.tuples(st.sampled_from([b"\x01", b"\x03", b"\x03use ", b"\x11", b"\x16", b"\x17", b"\x19"]), st.binary()).map(
        b"".join
    ),
    st.binary(max_size=200),
    st.booleans(),
)
@example(b"\x03\xff\x01", b"", False)
@example(b"\x03\xff\x01" + b"\xfe" * 600, b"\xff\xff\xff\xff\xff\xff\xff" * 20, True)
@example(b"\x03\x08\x01" + b"\0" * 40, b"\0\0\0\0\xff\xff\xff", False)
@example(b"\x16" + b"(" * 4096, PREPARED, False)
def test_no_bytes_make_it_raise(payload: bytes, answer: bytes, cut: bool) -> None:
    statements = Statements()
    statements.remember(payload, answer, cut)
    statements.forget(answer)
    for message in (payload, answer):
        statements.name(message, cut)
        assert len(statements.namespace) <= NAMESPACE_MAX
        operation = statements.operation(message, cut)
        assert len(operation.text) <= TEXT_MAX
        assert len(operation.raw) <= RAW_MAX
        assert not (operation.complete and cut)
    for outcome in (parse_reply(payload, answer), parse_reply(answer, payload)):
        assert len(outcome.code) <= 5
