"""Redis's commands and replies, as redis-py and a server of version 7 wrote them."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from spandial_agent.records.protocols.database import RAW_MAX, TEXT_MAX, Operation, Outcome
from spandial_agent.records.protocols.redis import parse_command, parse_reply

SET = b"*5\r\n$3\r\nSET\r\n$10\r\nsecret:key\r\n$12\r\nsecret value\r\n$2\r\nEX\r\n$2\r\n60\r\n"
SETINFO = b"*4\r\n$6\r\nCLIENT\r\n$7\r\nSETINFO\r\n$8\r\nLIB-NAME\r\n$8\r\nredis-py\r\n"
TRANSACTION = b"*1\r\n$5\r\nMULTI\r\n*2\r\n$3\r\nGET\r\n$10\r\nsecret:key\r\n*1\r\n$4\r\nEXEC\r\n"
OBJECT = b"*3\r\n$6\r\nOBJECT\r\n$8\r\nencoding\r\n$10\r\nsecret:key\r\n"
HELLO = b"*5\r\n$5\r\nHELLO\r\n$1\r\n3\r\n$4\r\nAUTH\r\n$7\r\ndefault\r\n$6\r\nsecret\r\n"


def command(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


def test_a_command_is_its_name_and_how_many_arguments_it_has() -> None:
    assert parse_command(SET) == Operation(
        name="SET", text="SET ? ? ? ?", raw="SET secret:key secret value EX 60", complete=True, arguments=4
    )


@pytest.mark.parametrize(
    ("message", "text", "arguments"),
    [
        (SETINFO, "CLIENT SETINFO ? ?", 2),
        (TRANSACTION, "MULTI", 0),
        (OBJECT, "OBJECT ENCODING ?", 1),
        (HELLO, "HELLO ? ? ? ?", 4),
        (command(b"mset", *[b"secret"] * 8), "MSET ? ? ? ? ? ? ? ?", 8),
        (command(b"mset", *[b"secret"] * 18), "MSET ? ? ? ? ? ? ? ? ...", 18),
        (command(b"COMMAND"), "COMMAND", 0),
        (command(b"CONFIG", b"\xff"), "CONFIG ?", 1),
        (command(b"georadius_ro", b"x"), "GEORADIUS_RO ?", 1),
        (command(b"JSON.GET", b"x"), "JSON.GET ?", 1),
        (command(b"secret value", b"x"), "UNKNOWN ?", 1),
        (command(b"s" * 33), "UNKNOWN", 0),
        (command(b"s3cret"), "UNKNOWN", 0),
        (command(b""), "UNKNOWN", 0),
        (command(b"SET", b"", b"\r\n"), "SET ? ?", 2),
        (b"*0\r\n", "", 0),
        (b"PING\r\n", "PING", 0),
        (b"set secret 'secret value'\r\n", "SET ? ?", 2),
        (b'set "secret \\" value" x\r\n', "SET ? ?", 2),
        (b"client list\n", "CLIENT LIST", 0),
        (b"\x01\x02 secret\r\n", "UNKNOWN ?", 1),
        (b"\r\n", "", 0),
    ],
)
def test_commands(message: bytes, text: str, arguments: int) -> None:
    operation = parse_command(message)
    assert (operation.text, operation.arguments) == (text, arguments)
    assert operation.name == text.partition(" ?")[0]
    assert operation.complete
    assert operation.collection == ""


@pytest.mark.parametrize("message", [SET, SETINFO, OBJECT, HELLO, b"SET secret 'secret value'\r\n"])
def test_of_a_command_that_is_cut_off_the_name_is_told_if_all_of_it_is_there(message: bytes) -> None:
    whole = parse_command(message)
    for length in range(len(message) - 2):
        operation = parse_command(message[:length])
        assert not operation.complete
        assert operation.name in ("", whole.name, whole.name.partition(" ")[0])
        assert "sec" not in operation.text
        assert len(operation.raw) <= len(whole.raw)


def test_arguments_are_counted_as_announced() -> None:
    operation = parse_command(b"*1001\r\n$4\r\nMGET\r\n$6\r\nsecret\r\n")
    assert operation == Operation("MGET", "", "MGET" + " ?" * 8 + " ...", "MGET secret", False, 1000)


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=12), st.binary(max_size=9), st.floats(0, 1))
def test_no_argument_survives(arguments: list[bytes], behind: bytes, part: float) -> None:
    message = command(b"SET", *arguments)
    operation = parse_command(message + behind)
    assert operation[:3] == ("SET", "", "SET" + " ?" * min(len(arguments), 8) + " ..." * (len(arguments) > 8))
    assert operation.arguments == len(arguments)
    assert operation.complete
    assert parse_command(message[: int(part * len(message))]).text in ("", operation.text)


@given(st.binary(max_size=300) | st.tuples(st.sampled_from([b"*", b"*9\r\n$", b"set '"]), st.binary()).map(b"".join))
@example(b"*9999999999\r\n$4\r\nMGET\r\n")
@example(b"*99999999999999999999\r\n")
@example(b"*-1\r\n")
@example(b"*2\r\n$3\r\nGET\r\n$9999999999\r\n")
@example(b"*1000000000\r\n" + b"$0\r\n\r\n" * 500)
@example(b"'\\" * 500)
@example(b"a" * 5000)
def test_no_bytes_make_it_raise_or_grow(message: bytes) -> None:
    operation = parse_command(message)
    assert len(operation.text) <= TEXT_MAX
    assert len(operation.raw) <= RAW_MAX
    assert len(operation.name) <= 65
    assert operation.arguments >= 0
    outcome = parse_reply(message)
    assert len(outcome.code) <= 32
    assert outcome.error >= bool(outcome.code)


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        (b"+OK\r\n", Outcome()),
        (b"$12\r\nsecret value\r\n", Outcome()),
        (b"%7\r\n$6\r\nserver\r\n", Outcome()),
        (b"*2\r\n-ERR x\r\n", Outcome()),
        (
            b"-WRONGTYPE Operation against a key holding the wrong kind\r\n",
            Outcome(error=True, code="WRONGTYPE"),
        ),
        (b"-ERR unknown command 'SECRETS', with args beginning with: 'x' \r\n", Outcome(error=True, code="ERR")),
        (b"-MYERR secret\r\n", Outcome(error=True, code="MYERR")),
        (b"-LOADING\r\n", Outcome(error=True, code="LOADING")),
        (b"!21\r\nSYNTAX invalid syntax\r\n", Outcome(error=True, code="SYNTAX")),
        (b"-secret words\r\n", Outcome(error=True)),
        (b"-" + b"S" * 40 + b" x\r\n", Outcome(error=True)),
        (b"-ER", Outcome(error=True)),
        (b"!21\r\nSYN", Outcome(error=True)),
        (b"", Outcome()),
    ],
)
def test_replies(first: bytes, expected: Outcome) -> None:
    assert parse_reply(first) == expected
