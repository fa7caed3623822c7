"""Requests and answers become exchanges: each request one, whatever happens to its connection."""

from __future__ import annotations

import random
from socket import AF_INET, AF_INET6, AF_UNIX, inet_pton

import pytest
from hpack import Encoder
from hypothesis import given
from hypothesis import strategies as st

from spandial.abi import ADDRESSES, BODY_UNKNOWN, EntryKind, Event, Parent, Protocol, RecordFlag
from spandial.labels import Labels
from spandial_agent.records.conversations import Conversations
from spandial_agent.records.record import decode_entry
from spandial_agent.spans import exchanges as exchanges_module
from spandial_agent.spans.exchanges import Exchanges, Peer
from spandial_agent.spans.record import Exchange
from tests.spandial_agent.records.making import record

SECOND = 1_000_000_000
SHOP = Peer(4711, 1, Labels("shop"))
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Watched:
    """Exchanges as the pipeline feeds them, and what has been finished."""

    def __init__(self) -> None:
        self.finished: list[Exchange] = []
        self.exchanges = Exchanges(lambda exchange, process: self.finished.append(exchange), random.Random(1))
        self._conversations = Conversations()

    def take(self, data: bytes, process: Peer = SHOP) -> None:
        entry = decode_entry(data)
        self.exchanges.take(entry, self._conversations.read(entry), process)

    def request(self, at: int, request: bytes = b"GET /pay?x HTTP/1.1", connection: int = 7, **more: int) -> None:
        self.take(record(request, time_ns=at, connection=connection, **more))

    def answer(self, at: int, answer: bytes = OK, connection: int = 7, protocol: int = Protocol.HTTP1) -> None:
        self.take(record(answer, time_ns=at, connection=connection, event=Event.ANSWER, protocol=protocol))

    def statement(self, at: int, request: bytes, protocol: Protocol) -> None:
        self.request(at, request, protocol=protocol, kind=EntryKind.DB)


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_an_exchange_lasts_from_the_request_to_the_last_of_its_answer(watched: Watched) -> None:
    watched.request(10, trace_id=99, span_id=5, parent=Parent.REMOTE_KEPT)
    watched.answer(20)
    watched.answer(35, b"the rest of the body")
    watched.exchanges.sweep(35 + SECOND - 1)
    assert not watched.finished
    watched.exchanges.sweep(35 + SECOND)
    (exchange,) = watched.finished
    assert (exchange.start_ns, exchange.end_ns, exchange.end) == (10, 35, "answered")
    assert (exchange.method, exchange.path, exchange.status, exchange.server) == ("GET", "/pay", 200, True)
    assert (exchange.trace_id, exchange.parent_span_id, exchange.pid) == (99, 5, 4711)
    assert exchange.span_id
    assert len(watched.exchanges) == 0


def test_the_next_request_of_a_connection_ends_the_one_before(watched: Watched) -> None:
    for number in range(3):
        watched.request(number * 100 + 1)
        watched.answer(number * 100 + 2, b"HTTP/1.1 50%d X\r\n" % number)
    assert [(e.start_ns, e.end_ns, e.status) for e in watched.finished] == [(1, 2, 500), (101, 102, 501)]


def test_pipelined_requests_end_together(watched: Watched) -> None:
    watched.request(1)
    watched.request(2)
    watched.answer(5)
    watched.answer(6)
    watched.request(9)
    assert [(e.start_ns, e.end_ns) for e in watched.finished] == [(1, 6), (2, 6)]
    assert watched.finished[0].span_id != watched.finished[1].span_id


def test_an_interim_answer_is_not_the_answer(watched: Watched) -> None:
    watched.request(1)
    watched.answer(2, b"HTTP/1.1 100 Continue\r\n\r\n")
    watched.answer(3, b"HTTP/1.1 201 Created\r\n\r\n")
    watched.exchanges.sweep(3 + SECOND)
    assert [(e.status, e.end_ns) for e in watched.finished] == [(201, 3)]


def test_a_connection_that_ends_first_is_an_end_of_its_own(watched: Watched) -> None:
    watched.request(1)
    watched.take(record(b"", time_ns=4, connection=7, event=Event.CLOSED))
    watched.request(11, connection=8)
    watched.answer(12, connection=8)
    watched.take(record(b"", time_ns=14, connection=8, event=Event.CLOSED))
    assert [(e.end, e.end_ns, e.status) for e in watched.finished] == [
        ("connection_closed", 4, None),
        ("answered", 12, 200),
    ]


def test_a_process_that_ends_ends_its_exchanges_and_no_others(watched: Watched) -> None:
    watched.request(1)
    watched.take(record(time_ns=2, connection=9), Peer(4712, 1, Labels("other")))
    watched.exchanges.exited({4711: 5, 4713: 4})
    assert [(e.end, e.start_ns, e.end_ns) for e in watched.finished] == [("process_exited", 1, 5)]
    assert len(watched.exchanges) == 1


def test_a_request_that_nobody_answers_is_given_up(watched: Watched) -> None:
    watched.request(1)
    watched.exchanges.sweep(299 * SECOND)
    assert not watched.finished
    watched.exchanges.sweep(301 * SECOND)
    assert [e.end for e in watched.finished] == ["no_answer_seen"]


def test_answers_without_a_request_are_nothing(watched: Watched) -> None:
    watched.answer(1)
    watched.take(record(b"", connection=7, event=Event.CLOSED))
    watched.exchanges.sweep(10 * SECOND)
    assert not watched.finished


@pytest.mark.parametrize(
    ("protocol", "request_", "answer", "expected"),
    [
        (
            Protocol.REDIS,
            b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n",
            b"-WRONGTYPE Operation",
            ("redis", "GET", True, "WRONGTYPE"),
        ),
        (Protocol.REDIS, b"*1\r\n$4\r\nPING\r\n", b"+PONG\r\n", ("redis", "PING", False, "")),
        (
            Protocol.POSTGRES,
            b"Q\0\0\0\x0dSELECT 1\0",
            b"E\0\0\0\x11SERROR\0C42P01\0\0Z\0\0\0\x05I",
            ("postgresql", "SELECT", True, "42P01"),
        ),
        (Protocol.MYSQL, b"\x03SELECT 1", b"\x09\0\0\1\xff\x7a\x04#42S02", ("mysql", "SELECT", True, "1146")),
    ],
)
def test_a_databases_answer_says_whether_it_failed(
    watched: Watched, protocol: Protocol, request_: bytes, answer: bytes, expected: tuple[str, str, bool, str]
) -> None:
    watched.statement(1, request_, protocol)
    watched.answer(2, answer, protocol=protocol)
    watched.exchanges.finish_all(3)
    (exchange,) = watched.finished
    assert (exchange.protocol, exchange.operation, exchange.error, exchange.error_code) == expected
    assert not exchange.server


BIND = b"B\0\0\0\x0d\0name\0\0\0\0\0\0\0"  # of a statement that was prepared before anybody looked
TAG = b"C\0\0\0\rSELECT 3\0Z\0\0\0\x05I"


def test_a_command_tag_names_a_statement_that_is_not_known_and_counts_rows(watched: Watched) -> None:
    watched.statement(1, BIND, Protocol.POSTGRES)
    watched.answer(2, TAG, protocol=Protocol.POSTGRES)
    for at in (3, 4):  # pipelined: whose answer it is, is not looked at
        watched.statement(at, BIND, Protocol.POSTGRES)
    watched.answer(5, TAG, protocol=Protocol.POSTGRES)
    watched.exchanges.finish_all(6)
    said = [(exchange.operation, exchange.returned_rows) for exchange in watched.finished]
    assert said == [("SELECT", 3), ("", None), ("", None)]


def test_an_entry_without_trace_context_gets_an_id_that_decides_alike(watched: Watched) -> None:
    watched.request(1, randomness=0x1234567890ABCD)
    watched.exchanges.finish_all(2)
    (exchange,) = watched.finished
    assert exchange.trace_id & (1 << 56) - 1 == 0x1234567890ABCD
    assert exchange.trace_id >> 56
    assert exchange.parent_span_id == 0


def of(uid: int) -> Peer:
    return Peer(uid, 1, Labels("shop"), uid)


def connections(watched: Watched) -> list[int]:
    """Those of the exchanges that are made of what is open now. The time says which it is."""
    del watched.finished[:]
    watched.exchanges.finish_all(1 << 40)
    return [exchange.start_ns for exchange in watched.finished]


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> Watched:
    """With room for six exchanges, three of a connection."""
    monkeypatch.setattr(exchanges_module, "_OPEN_MAX", 6)
    monkeypatch.setattr(exchanges_module, "_UNANSWERED_MAX", 3)
    monkeypatch.setattr(exchanges_module, "_ADDRESSES_MAX", 6)
    return Watched()


def test_there_is_an_end_to_what_is_kept_and_the_oldest_goes(narrow: Watched) -> None:
    for number in range(1, 9):
        narrow.request(number, connection=number)
    assert (len(narrow.exchanges), narrow.exchanges.lost) == (6, 2)
    assert connections(narrow) == [3, 4, 5, 6, 7, 8]


def test_who_has_most_open_exchanges_loses_the_oldest_of_his_and_no_newcomer_does(narrow: Watched) -> None:
    for number in range(1, 101):
        narrow.take(record(time_ns=number, connection=number), of(64321))
    for number in (101, 102):
        narrow.take(record(time_ns=number, connection=number), of(1000))
    narrow.take(record(time_ns=103, connection=103), of(1001))
    for number in range(104, 201):
        narrow.take(record(time_ns=number, connection=number), of(64321))
    assert connections(narrow) == [101, 102, 103, 198, 199, 200]
    assert narrow.exchanges.lost == 194
    assert "194 open exchanges were lost for want of room" in narrow.exchanges.crowded.trouble
    assert "user 64321 had 3 of 6." in narrow.exchanges.crowded.trouble


def test_a_connection_has_so_many_unanswered_requests_and_the_oldest_goes(narrow: Watched) -> None:
    for number in range(1, 6):
        narrow.request(number)
    narrow.request(6, connection=8)
    assert connections(narrow) == [3, 4, 5, 6]
    assert narrow.exchanges.lost == 2
    assert narrow.exchanges.crowded.trouble == ""
    assert narrow.exchanges.unanswered.trouble.startswith("2 requests that their connection had not answered were lost")


def test_streams_are_shared_as_other_exchanges_are(narrow: Watched) -> None:
    block = Encoder().encode([(":method", "GET"), (":path", "/")])
    for stream in range(1, 31, 2):
        what = {"protocol": Protocol.HTTP2, "connection": 7, "stream": stream, "flags": RecordFlag.FRESH}
        narrow.take(record(block, time_ns=stream, **what), of(64321))
    narrow.take(record(time_ns=100, connection=8), of(1000))
    assert sorted(connections(narrow)) == [21, 23, 25, 27, 29, 100]
    assert len(narrow.exchanges) == 0


def test_no_size_is_said_of_what_was_pipelined_with_one_that_was_given_up(narrow: Watched) -> None:
    narrow.request(1, size=10)
    narrow.request(2, size=10)
    narrow.take(record(OK, time_ns=3, connection=7, event=Event.ANSWER, size=40))
    for number in range(10, 15):
        narrow.request(number, connection=number)
    narrow.exchanges.finish_all(20)
    [exchange] = [exchange for exchange in narrow.finished if exchange.start_ns < 10]
    assert (exchange.start_ns, exchange.status, exchange.request_bytes, exchange.response_bytes) == (2, 200, None, None)


def test_who_has_most_connections_loses_what_is_known_of_the_oldest(narrow: Watched) -> None:
    ends = ADDRESSES.pack(AF_INET, 80, 5000, 0, bytes(16), bytes(16))
    narrow.take(record(ends, connection=1, event=Event.CONNECTION), of(1000))
    for number in range(2, 40):
        narrow.take(record(ends, connection=number, event=Event.CONNECTION), of(64321))
    for number in (1, 2, 39):
        narrow.request(number, connection=number)
    narrow.exchanges.finish_all(50)
    assert [exchange.local_port for exchange in narrow.finished] == [80, 0, 80]


class _Calls:
    """Streams of one HTTP/2 connection."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self._client, self._server = Encoder(), Encoder()
        self._fresh = self._fresh_answers = RecordFlag.FRESH

    def request(self, at: int, stream: int, *, grpc: bool = True, sent: bool = False) -> None:
        fields = [(":method", "POST"), (":scheme", "http"), (":path", "/shop.Orders/Get"), (":authority", "shop:81")]
        fields.append(("content-type", "application/grpc" if grpc else "text/plain"))
        flags = self._fresh | (RecordFlag.SENT if sent else 0)
        kind = EntryKind.GRPC if grpc else EntryKind.HTTP
        self._take(self._client.encode(fields), Event.ENTRY, at, stream, flags, kind)
        self._fresh = 0

    def answer(self, at: int, stream: int, *fields: tuple[str, str], end: bool = False, **sizes: int) -> None:
        block = self._server.encode(fields) if fields else b""
        self._take(block, Event.ANSWER, at, stream, self._fresh_answers | (RecordFlag.END if end else 0), **sizes)
        self._fresh_answers = 0

    def reset(self, at: int, stream: int, code: int) -> None:
        self._take(code.to_bytes(4, "big"), Event.ANSWER, at, stream, RecordFlag.END | RecordFlag.RESET)

    def _take(self, data: bytes, event: Event, at: int, stream: int, flags: int, kind: int = 1, **sizes: int) -> None:
        what = {"event": event, "protocol": Protocol.HTTP2, "kind": kind, "stream": stream, "flags": flags, **sizes}
        self._watched.take(record(data, time_ns=at, connection=7, **what))


@pytest.fixture
def calls(watched: Watched) -> _Calls:
    return _Calls(watched)


def test_a_stream_lasts_until_its_answer_ends(watched: Watched, calls: _Calls) -> None:
    calls.request(1, 1)
    calls.request(2, 3, sent=True)
    calls.answer(5, 3, (":status", "200"), ("content-type", "application/grpc"))
    calls.answer(6, 3, ("grpc-status", "5"), end=True)
    calls.answer(9, 1, (":status", "200"), ("grpc-status", "0"), end=True)
    found = [(e.protocol, e.start_ns, e.end_ns, e.status, e.server, e.end) for e in watched.finished]
    assert found == [("grpc", 2, 6, 5, False, "answered"), ("grpc", 1, 9, 0, True, "answered")]
    exchange = watched.finished[0]
    assert (exchange.rpc_service, exchange.rpc_method, exchange.authority) == ("shop.Orders", "Get", "shop:81")
    assert len(watched.exchanges) == 0


def test_a_stream_that_goes_on_is_waited_for_but_not_for_ever(watched: Watched, calls: _Calls) -> None:
    calls.request(1, 1)
    calls.answer(2, 1, (":status", "200"))
    calls.request(3, 3)
    watched.exchanges.sweep(400 * SECOND)
    assert [(e.start_ns, e.end) for e in watched.finished] == [(3, "no_answer_seen")]
    watched.exchanges.sweep(3601 * SECOND)
    assert [(e.start_ns, e.end) for e in watched.finished[1:]] == [(1, "no_answer_seen")]


def test_a_reset_is_a_status_of_grpc_or_an_error_of_http(watched: Watched, calls: _Calls) -> None:
    calls.request(1, 1)
    calls.reset(2, 1, 8)
    calls.request(3, 3, grpc=False)
    calls.answer(4, 3, (":status", "100"))
    calls.answer(5, 3, (":status", "200"))
    calls.reset(6, 3, 2)
    calls.request(7, 5)
    calls.reset(8, 5, 99)
    found = [(e.protocol, e.status, e.error, e.error_code) for e in watched.finished]
    assert found == [("grpc", 1, False, ""), ("http", 200, True, "INTERNAL_ERROR"), ("grpc", 2, False, "")]


def test_a_connection_or_a_process_that_ends_ends_its_streams(watched: Watched, calls: _Calls) -> None:
    calls.request(1, 1)
    calls.request(2, 3)
    watched.take(record(b"", time_ns=4, connection=7, event=Event.CLOSED, protocol=Protocol.HTTP2))
    calls.request(5, 5)
    watched.exchanges.exited({4711: 6})
    assert [(e.end, e.end_ns) for e in watched.finished] == [("connection_closed", 4)] * 2 + [("process_exited", 6)]
    assert len(watched.exchanges) == 0


@pytest.mark.parametrize(
    ("family", "local", "peer", "expected"),
    [
        (AF_INET, "127.0.0.1", "10.1.2.3", ("127.0.0.1", "10.1.2.3")),
        (AF_INET6, "::1", "fe80::1", ("::1", "fe80::1")),
        (AF_INET6, "::ffff:10.0.0.1", "::ffff:10.0.0.2", ("10.0.0.1", "10.0.0.2")),
        (AF_UNIX, "", "", ("", "")),
    ],
)
def test_both_ends_of_the_connection_are_told(
    watched: Watched, family: int, local: str, peer: str, expected: tuple[str, str]
) -> None:
    ends = [inet_pton(family, end).ljust(16, b"\0") if end else bytes(16) for end in (local, peer)]
    watched.take(record(ADDRESSES.pack(family, 80, 5000, 0, *ends), connection=7, event=Event.CONNECTION))
    watched.request(1)
    watched.answer(2)
    watched.exchanges.finish_all(3)
    (exchange,) = watched.finished
    assert (exchange.local_address, exchange.peer_address) == expected
    assert (exchange.local_port, exchange.peer_port) == ((80, 5000) if expected[0] else (0, 0))


def test_sizes_are_said_of_a_request_that_is_alone(watched: Watched) -> None:
    watched.request(1, size=100)
    watched.take(record(OK, time_ns=2, connection=7, event=Event.ANSWER, size=300, body=1000))
    watched.take(record(b"more", time_ns=3, connection=7, event=Event.ANSWER, size=4))
    watched.request(4, size=10)
    watched.request(5, size=10)
    watched.answer(6)
    watched.exchanges.finish_all(9)
    assert [(e.request_bytes, e.response_bytes) for e in watched.finished] == [(1100, 304), (None, None), (None, None)]


def test_the_sizes_of_a_streams_bodies_are_said_where_they_are_known(watched: Watched, calls: _Calls) -> None:
    for stream in (1, 3, 5, 7):
        calls.request(stream, stream, grpc=False)
    calls.answer(8, 1, (":status", "200"), size=99)
    calls.answer(9, 1, end=True, size=2000, body=10)
    calls.answer(10, 3, (":status", "204"), end=True, size=1234, body=0)  # of another stream in its place
    calls.answer(11, 5, (":status", "200"))
    calls.answer(12, 5, end=True, size=BODY_UNKNOWN, body=BODY_UNKNOWN)
    calls.answer(13, 7, (":status", "200"))
    calls.reset(14, 7, 8)
    sizes = [(e.request_body_bytes, e.response_body_bytes) for e in watched.finished]
    assert sizes == [(10, 2000), (0, 0), (None, None), (None, None)]


_events = st.sampled_from([Event.ENTRY, Event.ANSWER, Event.CLOSED])


@given(st.lists(st.tuples(_events, st.integers(1, 3), st.integers(0, 3 * SECOND)), max_size=60))
def test_every_request_is_finished_once(events: list[tuple[Event, int, int]]) -> None:
    watched, now, requests = Watched(), 0, 0
    for event, connection, passed in events:
        now += passed
        watched.exchanges.sweep(now)
        requests += event == Event.ENTRY
        watched.take(record(b"GET / HTTP/1.1", time_ns=now, connection=connection, event=event))
    watched.exchanges.finish_all(now)
    assert len(watched.finished) == requests
    assert len(watched.exchanges) == 0
    assert all(exchange.end_ns >= exchange.start_ns for exchange in watched.finished)
