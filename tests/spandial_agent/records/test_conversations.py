"""Records in their order tell what was asked, and never somebody else's statement or header."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hpack import Encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from spandial.abi import (
    MAX_THRESHOLD,
    RANDOMNESS_MASK,
    EntryKind,
    Event,
    Flag,
    Mode,
    Parent,
    Protocol,
    RecordFlag,
    encode_word,
)
from spandial_agent.records.conversations import Call, Conversations
from spandial_agent.records.record import decode_entry
from tests.spandial_agent.records.making import record

HIT, MISS = RANDOMNESS_MASK, 1
Read = Callable[[bytes], "Call | None"]


@pytest.fixture(name="read")
def reader() -> Read:
    conversations = Conversations()
    return lambda data: conversations.read(decode_entry(data))


def database(
    protocol: Protocol, request: bytes, event: Event = Event.ENTRY, connection: int = 1, flags: int = 0
) -> bytes:
    return record(
        request,
        kind=EntryKind.DB,
        protocol=protocol,
        event=event,
        connection=connection,
        flags=flags,
        word=encode_word(100),
    )


def pg(kind: bytes, payload: bytes) -> bytes:
    return kind + struct.pack("!I", len(payload) + 4) + payload


def parse(name: bytes, text: bytes) -> bytes:
    return pg(b"P", name + b"\0" + text + b"\0\0\0")


def bind(name: bytes) -> bytes:
    return pg(b"B", b"\0" + name + b"\0\0\0\0\0\0\0")


def text(call: Call | None) -> str:
    assert call is not None
    return call.operation.text


@pytest.mark.parametrize(
    ("mode", "thin", "randomness", "parent", "kept_by"),
    [
        (Mode.FOLLOW, False, HIT, Parent.NONE, "rate"),
        (Mode.FOLLOW, False, HIT, Parent.REMOTE_KEPT, "parent"),
        (Mode.FOLLOW, False, MISS, Parent.REMOTE_KEPT, "parent"),
        (Mode.FOLLOW, True, HIT, Parent.REMOTE_KEPT, "rate"),
        (Mode.BOOST, False, HIT, Parent.REMOTE_KEPT, "rate"),
        (Mode.BOOST, False, MISS, Parent.REMOTE_KEPT, "parent"),
        (Mode.BOOST, False, HIT, Parent.REMOTE_DROPPED, "rate"),
        (Mode.STRICT, False, HIT, Parent.REMOTE_KEPT, "rate"),
        (Mode.STRICT, False, HIT, Parent.REMOTE_DROPPED, "rate"),
    ],
)
def test_an_entry_says_whether_the_rate_or_the_parent_kept_it(
    mode: Mode, thin: bool, randomness: int, parent: Parent, kept_by: str, read: Read
) -> None:
    word = encode_word(50, mode, emit=True, thin=thin)
    call = read(record(word=word, randomness=randomness, parent=parent))
    assert call is not None
    assert call.kept_by == kept_by


def test_an_http_request_has_method_and_path(read: Read) -> None:
    call = read(record(b"POST /pay?card=1 HTTP/1.1"))
    assert call is not None
    assert (call.protocol, call.method, call.path) == (Protocol.HTTP1, "POST", "/pay")


def test_a_prepared_statement_is_known_by_its_name_on_its_connection(read: Read) -> None:
    for connection, statement in ((1, b"SELECT 1 FROM a"), (2, b"DELETE FROM b WHERE x = 'y'")):
        assert read(database(Protocol.POSTGRES, parse(b"s", statement), Event.PREPARE, connection)) is None
    assert text(read(database(Protocol.POSTGRES, bind(b"s"), connection=1))) == "SELECT ? FROM a"
    assert text(read(database(Protocol.POSTGRES, bind(b"s"), connection=2))) == "DELETE FROM b WHERE x = ?"
    assert text(read(database(Protocol.POSTGRES, bind(b"other"), connection=2))) == ""
    assert text(read(database(Protocol.POSTGRES, bind(b"s"), connection=3))) == ""
    assert text(read(database(Protocol.POSTGRES, b"", connection=1))) == ""


def test_mysql_names_statements_by_the_number_of_the_reply(read: Read) -> None:
    reply = struct.pack("<IBIHHBH", 12 | 1 << 24, 0, 9, 1, 1, 0, 0)
    execute = b"\x17" + struct.pack("<IBI", 9, 0, 1)
    assert read(database(Protocol.MYSQL, reply, Event.REPLY)) is None
    assert read(database(Protocol.MYSQL, b"\x16SELECT a FROM b WHERE c = ?", Event.PREPARE)) is None
    assert text(read(database(Protocol.MYSQL, execute))) == ""
    assert read(database(Protocol.MYSQL, reply, Event.REPLY)) is None
    assert text(read(database(Protocol.MYSQL, execute))) == "SELECT a FROM b WHERE c = ?"
    assert read(database(Protocol.MYSQL, b"\x19" + struct.pack("<I", 9), Event.FORGET)) is None
    assert text(read(database(Protocol.MYSQL, execute))) == ""


def test_a_redis_command_shows_no_argument(read: Read) -> None:
    call = read(database(Protocol.REDIS, b"*3\r\n$3\r\nset\r\n$3\r\nkey\r\n$6\r\nsecret\r\n"))
    assert call is not None
    assert (call.operation.name, call.operation.text) == ("SET", "SET ? ?")


class Http2:
    """What a client sends on one connection, as the kernel hands it over."""

    def __init__(self, connection: int = 1) -> None:
        self.encoder, self.connection = Encoder(), connection

    def record(
        self,
        event: Event = Event.ENTRY,
        flags: int = 0,
        path: str = "/shop.Orders/Get",
        word: int = encode_word(50, Mode.STRICT),
        context: dict[str, int] | None = None,
        **more: str,
    ) -> bytes:
        headers = [(":method", "POST"), (":path", path), ("content-type", "application/grpc"), *more.items()]
        block = self.encoder.encode(headers)
        ids = {"connection": self.connection, "event": event, "flags": flags, "word": word, "randomness": HIT}
        return record(block, kind=EntryKind.GRPC, protocol=Protocol.HTTP2, **ids, **(context or {}))


def path(call: Call | None) -> str:
    assert call is not None
    return call.path if call.path_known else "unknown"


def test_header_tables_are_kept_for_each_connection(read: Read) -> None:
    one, two = Http2(1), Http2(2)
    assert read(one.record(Event.BLOCK, RecordFlag.FRESH)) is None
    assert path(read(two.record(flags=RecordFlag.FRESH, path="/other/Call"))) == "/other/Call"
    assert path(read(one.record())) == "/shop.Orders/Get"
    assert path(read(two.record(path="/other/Call"))) == "/other/Call"


def test_after_a_gap_nothing_wrong_is_said(read: Read) -> None:
    client = Http2()
    assert path(read(client.record(flags=RecordFlag.FRESH))) == "/shop.Orders/Get"
    client.record(path="/lost")
    assert path(read(client.record(flags=RecordFlag.GAP))) == "unknown"
    assert path(read(client.record(path="/new"))) == "/new"
    assert path(read(client.record(path="/new"))) == "/new"


def test_a_connection_that_was_there_before_is_unknown_at_first(read: Read) -> None:
    client = Http2()
    client.record()
    assert path(read(client.record())) == "unknown"


def test_lost_records_are_a_gap_everywhere() -> None:
    conversations = Conversations()
    client = Http2()
    conversations.read(decode_entry(client.record(flags=RecordFlag.FRESH)))
    conversations.read(decode_entry(database(Protocol.POSTGRES, parse(b"s", b"SELECT 1"), Event.PREPARE)))
    conversations.forget()
    assert path(conversations.read(decode_entry(client.record()))) == "unknown"
    assert text(conversations.read(decode_entry(database(Protocol.POSTGRES, bind(b"s"))))) == ""


def test_one_users_connections_take_nobody_elses_path() -> None:
    """A user opens as many as are remembered of all together, and more."""
    conversations, client = Conversations(), Http2()
    assert path(conversations.read(decode_entry(client.record(flags=RecordFlag.FRESH)), 1)) == "/shop.Orders/Get"
    for connection in range(2, 1200):
        conversations.read(decode_entry(Http2(connection).record(flags=RecordFlag.FRESH)), 2)
    assert path(conversations.read(decode_entry(client.record()), 1)) == "/shop.Orders/Get"
    assert conversations.forgotten == 1199 - 1024


@pytest.mark.parametrize("connections", [32_800, 140])
def test_one_users_statements_take_nobody_elses(connections: int) -> None:
    """However they are spread over connections."""
    conversations = Conversations()
    prepare = parse(b"s", b"SELECT 1")
    conversations.read(decode_entry(database(Protocol.POSTGRES, prepare, Event.PREPARE)), 1)
    for connection in range(2, 2 + connections):
        for number in range(240 if connections < 200 else 1):
            prepare = parse(b"s%d" % number, b"SELECT 2")
            conversations.read(decode_entry(database(Protocol.POSTGRES, prepare, Event.PREPARE, connection)), 2)
    assert text(conversations.read(decode_entry(database(Protocol.POSTGRES, bind(b"s"))), 1)) == "SELECT ?"
    assert conversations.forgotten


def test_of_many_statements_on_one_connection_no_more_are_weighed_than_there_are() -> None:
    conversations = Conversations()
    reply = struct.pack("<IBIHHBH", 12 | 1 << 24, 0, 9, 1, 1, 0, 0)
    for _ in range(40_000):
        conversations.read(decode_entry(database(Protocol.MYSQL, b"\x16SELECT 1", Event.PREPARE)), 1)
        conversations.read(decode_entry(database(Protocol.MYSQL, reply, Event.REPLY)), 1)
    assert not conversations.forgotten


@pytest.mark.parametrize(
    ("trace_id", "sampled", "tracestate", "kept"),
    [
        (HIT, False, "", True),
        (MISS, True, "", False),
        (MISS, False, "ot=rv:ffffffffffffff", True),
        (HIT, True, "a=b,ot=th:8;rv:00000000000000", False),
    ],
)
def test_what_the_kernel_left_undecided_is_decided_as_it_would_have(
    read: Read, trace_id: int, sampled: bool, tracestate: str, kept: bool
) -> None:
    fields = {"traceparent": f"00-{trace_id:032x}-b7ad6b7169203331-{int(sampled):02x}"}
    if tracestate:
        fields["tracestate"] = tracestate
    call = read(Http2().record(flags=RecordFlag.FRESH | RecordFlag.UNDECIDED, **fields))
    assert (call is not None) == kept
    if call is not None:
        parent = Parent.REMOTE_KEPT if sampled else Parent.REMOTE_DROPPED
        assert (call.trace_id, call.span_id, call.parent) == (trace_id, 0xB7AD6B7169203331, parent)


def test_an_undecided_entry_without_trace_context_is_decided_by_the_kernels_draw(read: Read) -> None:
    assert read(Http2().record(flags=RecordFlag.FRESH | RecordFlag.UNDECIDED)) is not None


def test_an_undecided_entry_obeys_the_rule_for_its_operation() -> None:
    asked = []

    def word_of(*operation: object) -> int | None:
        asked.append(operation)
        return {"/shop.Orders/Get": encode_word(0), "/shop.Orders/Put": None}.get(str(operation[-1]), 0)

    conversations, client = Conversations(word_of), Http2()
    flags, word = RecordFlag.UNDECIDED, encode_word(100) | Flag.OPERATIONS
    said = []
    for path in ("/shop.Orders/Get", "/shop.Orders/Put", "/shop.Orders/List"):
        data = client.record(path=path, flags=flags | (0 if said else RecordFlag.FRESH), word=word)
        said.append(conversations.read(decode_entry(data)))
    assert [call is not None for call in said] == [False, True, True]
    assert asked[0] == (2, EntryKind.GRPC, "POST", "/shop.Orders/Get")


def test_where_the_path_is_not_known_no_rule_by_operation_holds() -> None:
    conversations, client = Conversations(lambda *_: encode_word(0)), Http2()
    client.record()
    data = client.record(flags=RecordFlag.UNDECIDED | RecordFlag.GAP, word=encode_word(100) | Flag.OPERATIONS)
    assert path(conversations.read(decode_entry(data))) == "unknown"


def test_what_the_kernel_knows_of_the_trace_context_stands_where_nothing_more_is_known() -> None:
    conversations, client = Conversations(), Http2()
    word = encode_word(50, Mode.STRICT) | Flag.OPERATIONS
    context = {"trace_id": HIT, "span_id": 5, "parent": Parent.REMOTE_DROPPED}
    call = conversations.read(decode_entry(client.record(flags=RecordFlag.UNDECIDED, word=word, context=context)))
    assert isinstance(call, Call)
    assert (call.trace_id, call.span_id, call.parent) == (HIT, 5, Parent.REMOTE_DROPPED)


_numbers = {"kind": st.sampled_from(EntryKind), "protocol": st.sampled_from(Protocol), "event": st.sampled_from(Event)}
_rest = {"connection": st.integers(0, 3), "flags": st.integers(0, 15), "randomness": st.integers(0, MAX_THRESHOLD - 1)}


@settings(max_examples=300)
@given(st.lists(st.builds(record, st.binary(max_size=80), **_numbers, **_rest), max_size=20))
def test_any_records_can_be_read(records: list[bytes]) -> None:
    conversations = Conversations()
    for data in records:
        conversations.read(decode_entry(data))
