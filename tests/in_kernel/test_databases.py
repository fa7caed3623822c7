"""Database traffic in any shape is counted operation by operation: whole, split, in several buffers, pipelined."""

from __future__ import annotations

import itertools
import os
import random
import socket
import struct
import threading
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spandial import abi
from spandial.abi import EntryKind, Event, Protocol, RecordFlag
from spandial_agent.records.record import Entry
from tests.in_kernel.conftest import Watched

pytestmark = pytest.mark.kernel

SELECT = b"SELECT * FROM orders WHERE id = 1"


def pg(kind: bytes, payload: bytes = b"") -> bytes:
    return kind + struct.pack("!I", len(payload) + 4) + payload


def pg_query(text: bytes = SELECT) -> bytes:
    return pg(b"Q", text + b"\0")


def pg_parse(name: bytes = b"", text: bytes = SELECT) -> bytes:
    return pg(b"P", name + b"\0" + text + b"\0" + struct.pack("!H", 0))


def pg_bind(name: bytes = b"", portal: bytes = b"") -> bytes:
    return pg(b"B", portal + b"\0" + name + b"\0" + struct.pack("!HHiH", 0, 1, 1, 0) + b"7")


EXECUTE, SYNC, DESCRIBE = pg(b"E", b"\0\0\0\0\0"), pg(b"S"), pg(b"D", b"P\0")
STARTUP = struct.pack("!II", 8 + 13, 0x30000) + b"user\0tester\0\0"


def my(payload: bytes, sequence: int = 0) -> bytes:
    return struct.pack("<I", len(payload) | sequence << 24) + payload


def my_query(text: bytes = SELECT) -> bytes:
    return my(b"\x03" + text)


def resp(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


class Pair:
    """A connected client and server, both of this process."""

    def __init__(self) -> None:
        self.client, self.server = socket.socketpair()

    def send(self, *messages: bytes) -> None:
        """Each message by one call, and read to its end."""
        for message in messages:
            self.client.sendall(message)
            self.drain(self.server, len(message))

    def answer(self, message: bytes) -> None:
        self.server.sendall(message)
        self.drain(self.client, len(message))

    @staticmethod
    def drain(end: socket.socket, size: int) -> None:
        while size:
            size -= len(end.recv(size))

    def close(self) -> None:
        self.client.close()
        self.server.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


def counted(watched: Watched) -> tuple[int, int]:
    """Statements sent, which are entries, and statements received."""
    counts = watched.counts()
    assert counts.kept == counts.seen
    return counts.seen[EntryKind.DB], counts.reverse[EntryKind.DB]


def handed_over(watched: Watched, count: int) -> list[Entry]:
    return watched.entries(count)


ONE = {
    "redis": resp(b"SET", b"key", b"value"),
    "postgres simple": pg_query(),
    "postgres extended": pg_parse() + pg_bind() + DESCRIBE + EXECUTE + SYNC,
    "postgres prepared": pg_bind(b"named") + EXECUTE + SYNC,
    "mysql": my_query(),
}


@pytest.mark.parametrize("name", ONE)
def test_each_operation_is_counted_where_it_is_sent_and_where_it_is_received(
    watched: Watched, pair: Pair, name: str
) -> None:
    pair.send(*[ONE[name]] * 23)
    assert counted(watched) == (23, 23)
    assert watched.capture.losses()["desync"] == 0


PIPELINES = {
    "redis": [
        *(resp(b"SET", b"key", b"x" * size) for size in (0, 1, 2, 15, 16, 17, 300, 5000)),
        resp(b"PING"),
        resp(b"MSET", *[b"k", b"v"] * 40),
        b"PING\r\n",
        b"INCR some_counter\r\n",
    ],
    "postgres": [
        STARTUP,
        pg(b"p", b"secret\0"),
        pg_query(),
        pg_query(b""),
        pg_query(b"SELECT '" + b"x" * 3000 + b"'"),
        pg_parse(b"name") + SYNC,
        pg_bind(b"name") + EXECUTE + pg_bind(b"name") + EXECUTE + SYNC,
        pg(b"d", b"1\t2\n") + pg(b"c"),
    ],
    "mysql": [
        my_query(),
        my(b"\x0e"),
        my_query(b"x" * 3000),
        my(b""),
        my(b"\x16SELECT ?"),
        my(b"\x17\1\0\0\0\0\1\0\0\0") + my(b"more", 1),
        my_query(b"SET x"),
        my(b"\x19\1\0\0\0"),
    ],
}
OPERATIONS = {"redis": 12, "postgres": 5, "mysql": 4}
FIRST = {"redis": resp(b"PING"), "postgres": pg_query(), "mysql": my_query()}


def chunks(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    return [part for part in (data[start:end] for start, end in itertools.pairwise(edges)) if part]


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 13, 1000, 1 << 20])
def test_messages_may_be_split_anywhere(watched: Watched, pair: Pair, name: str, size: int) -> None:
    pair.send(FIRST[name])
    data = b"".join(PIPELINES[name])
    pair.send(*(data[at : at + size] for at in range(0, len(data), size)))
    assert counted(watched) == (1 + OPERATIONS[name], 1 + OPERATIONS[name])


@pytest.mark.parametrize("name", PIPELINES)
def test_messages_may_lie_in_many_buffers(watched: Watched, pair: Pair, name: str) -> None:
    pair.send(FIRST[name])
    data = b"".join(PIPELINES[name])
    parts = chunks(data, [random.Random(size).randrange(len(data)) for size in range(200)])
    assert pair.client.sendmsg(parts) == len(data)
    buffers = [bytearray(len(part)) for part in parts[::-1]]
    assert pair.server.recvmsg_into(buffers)[0] == len(data)
    assert counted(watched) == (1 + OPERATIONS[name], 1 + OPERATIONS[name])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(sorted(PIPELINES)), cuts=st.lists(st.integers(0, 20_000), max_size=30), gather=st.booleans()
)
def test_any_cuts_leave_the_count_as_it_is(watched: Watched, name: str, cuts: list[int], gather: bool) -> None:
    pair = Pair()
    before = counted(watched)[0]
    parts = chunks(b"".join(PIPELINES[name]), cuts)
    pair.send(FIRST[name])
    if gather:
        size = pair.client.sendmsg(parts)
        pair.drain(pair.server, size)
    else:
        pair.send(*parts)
    pair.close()
    assert counted(watched)[0] - before == 1 + OPERATIONS[name]


def test_a_large_pipeline_is_counted_one_by_one(watched: Watched, pair: Pair) -> None:
    pipeline = b"".join(resp(b"SET", b"key:%d" % number, b"value") for number in range(3000))
    reader = threading.Thread(target=pair.drain, args=(pair.server, len(pipeline)))
    reader.start()
    pair.client.sendall(pipeline)
    reader.join()
    assert counted(watched) == (3000, 3000)


def test_an_entry_carries_its_request(watched: Watched, pair: Pair) -> None:
    messages = [resp(b"SET", b"key", b"value"), resp(b"GET", b"k" * 3000)]
    pair.send(messages[0], messages[1][:100], messages[1][100:])
    first, second = handed_over(watched, 2)
    assert (first.kind, first.protocol, first.event, first.tgid) == (
        EntryKind.DB,
        Protocol.REDIS,
        Event.ENTRY,
        os.getpid(),
    )
    assert first.request == messages[0]
    assert second.request[:1000] == messages[1][:1000]
    assert (first.flags, second.flags) == (RecordFlag.SENT, RecordFlag.SENT | RecordFlag.CUT)
    assert first.connection == second.connection != 0
    assert first.time_ns <= second.time_ns


def test_prepared_statements_are_handed_over_before_what_names_them(watched: Watched, pair: Pair) -> None:
    pair.send(STARTUP, pg_parse(b"name") + SYNC, pg_bind(b"name") + EXECUTE + SYNC, pg_query(b"COMMIT"))
    _session, prepare, execute, query = handed_over(watched, 4)
    assert (prepare.event, prepare.request) == (Event.PREPARE, pg_parse(b"name"))
    assert (execute.event, execute.request) == (Event.ENTRY, pg_bind(b"name"))
    assert (query.event, query.request) == (Event.ENTRY, pg_query(b"COMMIT"))


def test_an_unnamed_statement_goes_with_its_execution(watched: Watched, pair: Pair) -> None:
    pair.send(STARTUP, pg_parse() + pg_bind() + EXECUTE + SYNC)
    _session, prepare, execute = handed_over(watched, 3)
    assert (prepare.event, prepare.request) == (Event.PREPARE, pg_parse())
    assert (execute.event, execute.request) == (Event.ENTRY, pg_bind())


def test_an_unnamed_statement_that_was_not_handed_over_stays_unknown(watched: Watched, pair: Pair) -> None:
    pair.send(STARTUP, pg_parse() + pg_bind() + EXECUTE + SYNC)
    watched.set(abi.encode_word(0))
    pair.send(pg_parse(text=b"DELETE FROM orders") + pg_bind() + EXECUTE + SYNC)
    watched.set(abi.encode_word(100, emit=True))
    pair.send(pg_bind() + EXECUTE + SYNC)
    *_, unknown = handed_over(watched, 3)
    assert (unknown.event, unknown.request) == (Event.ENTRY, b"")


def test_mysql_says_which_number_a_statement_got(watched: Watched, pair: Pair) -> None:
    pair.send(my_query(b"SET NAMES utf8mb4"), my(b"\x16SELECT ? + 1"))
    reply = my(b"\0" + struct.pack("<IHHBH", 9, 1, 1, 0, 0), 1)
    pair.answer(reply)
    execute = my(b"\x17" + struct.pack("<IBI", 9, 0, 1) + b"secret parameters")
    pair.send(execute, my(b"\x19" + struct.pack("<I", 9)))
    events = handed_over(watched, 5)
    assert [entry.event for entry in events] == [Event.ENTRY, Event.PREPARE, Event.REPLY, Event.ENTRY, Event.FORGET]
    assert events[1].request == b"\x16SELECT ? + 1"
    assert events[2].request == reply[:16]
    assert events[3].request == execute[4:20]
    assert events[4].request == b"\x19" + struct.pack("<I", 9)


def test_connections_have_numbers_of_their_own(watched: Watched) -> None:
    for _ in range(10):
        pair = Pair()
        pair.send(resp(b"PING"))
        pair.close()
    assert len({entry.connection for entry in handed_over(watched, 10)}) == 10


@pytest.mark.parametrize("rate", [0, 10, 50])
def test_the_rate_decides(watched: Watched, pair: Pair, rate: float) -> None:
    watched.set(abi.encode_word(rate))
    pair.send(resp(b"PING"), b"".join([resp(b"PING")] * 4000))
    counts = watched.counts()
    assert counts.seen[EntryKind.DB] == 4001
    expected = 40.01 * rate
    assert abs(counts.kept[EntryKind.DB] - expected) <= 6 * (expected * (1 - rate / 100)) ** 0.5


GARBAGE = {
    "redis": b"\x16\3\1garbage, nothing but garbage",
    "postgres": b"\x16\3\1\2\0garbage, nothing but garbage",
    "mysql": my(b"\x77garbage"),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_a_connection_that_makes_no_sense_is_left_until_it_does(watched: Watched, pair: Pair, name: str) -> None:
    before = watched.capture.losses()["desync"]
    pair.send(FIRST[name], GARBAGE[name])
    assert counted(watched) == (1, 1)
    assert watched.capture.losses()["desync"] == before + 2
    pair.send(b"still nothing but garbage", FIRST[name], FIRST[name])
    assert counted(watched) == (3, 3)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(sorted(FIRST)), noise=st.lists(st.binary(min_size=1, max_size=300), max_size=8))
def test_noise_never_harms(watched: Watched, name: str, noise: list[bytes]) -> None:
    pair = Pair()
    pair.send(FIRST[name], *noise)
    pair.close()
    fresh = Pair()
    before = counted(watched)
    fresh.send(FIRST[name])
    fresh.close()
    assert counted(watched) == (before[0] + 1, before[1] + 1)


def test_a_server_that_reads_header_and_rest_apart_is_known_by_its_greeting(watched: Watched, pair: Pair) -> None:
    pair.answer(my(b"\x0a5.5.5-10.11.6-MariaDB\0" + bytes(60)))
    pair.send(my(bytes(40), 1), b"".join(my_query() for _ in range(7))[:4])
    rest = b"".join(my_query() for _ in range(7))[4:]
    pair.send(rest)
    assert counted(watched) == (7, 7)


def test_a_connection_that_goes_on_with_tls_is_left_alone(watched: Watched, pair: Pair) -> None:
    before = watched.capture.losses()["desync"]
    pair.answer(my(b"\x0a8.0.36\0" + bytes(60)))
    pair.send(my(bytes(32), 1), b"\x16\3\1\0\3" + bytes(600), b"\x17\3\3\0\3\x03" + bytes(600))
    assert counted(watched) == (0, 0)
    assert watched.capture.losses()["desync"] == before


def test_what_names_a_database_is_handed_over_whatever_the_rate(watched: Watched) -> None:
    watched.set(abi.encode_word(0, emit=True))
    postgres, mysql = Pair(), Pair()
    startup = struct.pack("!II", 8 + 28, 0x30000) + b"user\0tester\0database\0shop\0\0\0"
    postgres.send(startup, pg_query())
    mysql.answer(my(b"\x0a8.0.36\0" + bytes(60)))
    handshake = struct.pack("<IIB23x", 0x8208, 1 << 24, 45) + b"app\0\x14" + bytes(20) + b"shop\0"
    named = [b"\x02stock", b"\x03USE orders", b"\x03use a", b"\x03\0\1use `a b`", b"\x11app\0\0shop\0"]
    mysql.send(my(handshake, 1), *map(my, named), my(b"\x03users"), my_query())
    large = my(b"\x03" + bytes(5000)) + my(handshake, 1)  # as if a query went on in another packet
    mysql.send(large)
    postgres.close()
    mysql.close()
    watched.set(abi.encode_word(100, emit=True))
    last = Pair()
    last.send(my_query())
    last.close()
    *sessions, entry = watched.entries(8)
    assert entry.event == Event.ENTRY
    assert {session.event for session in sessions} == {Event.SESSION}
    assert [session.request for session in sessions] == [startup, b"\1" + handshake, *named]
    assert watched.counts().seen[EntryKind.DB] == 8


def test_without_a_reader_no_session_is_handed_over(watched: Watched, pair: Pair) -> None:
    watched.set(abi.encode_word(100))
    pair.send(STARTUP, pg_query())
    watched.set(abi.encode_word(100, emit=True))
    pair.send(pg_query())
    assert [entry.event for entry in handed_over(watched, 1)] == [Event.ENTRY]
