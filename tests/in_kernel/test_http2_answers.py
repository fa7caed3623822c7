"""Streams of HTTP/2 get the answers that are theirs, however the bytes are cut and whatever else is on the way."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest
from hpack import Encoder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spandial import abi
from spandial.abi import EntryKind, Event, Mode, RecordFlag
from spandial.labels import Labels
from spandial_agent.records.conversations import Conversations
from spandial_agent.spans.exchanges import Exchanges, Peer
from spandial_agent.spans.record import Exchange
from tests.agent_process import eventually
from tests.in_kernel.conftest import Watched
from tests.in_kernel.remote import RemotePair
from tests.in_kernel.test_databases import chunks
from tests.in_kernel.test_http2 import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PADDED,
    PREFACE,
    SETTINGS,
    Client,
    frame,
    traceparent,
)

pytestmark = pytest.mark.kernel

RST_STREAM = 3
KEPT = 64  # places for streams whose answers are wanted


class Server:
    """What a gRPC server sends on one connection."""

    def __init__(self) -> None:
        self.encoder = Encoder()

    def start(self, stream: int) -> bytes:
        fields = [(":status", "200"), ("content-type", "application/grpc"), ("x-stream", str(stream))]
        return frame(HEADERS, END_HEADERS, stream, self.encoder.encode(fields)) + frame(DATA, 0, stream, bytes(40))

    def end(self, stream: int, status: int = 0) -> bytes:
        block = self.encoder.encode([("grpc-status", str(status)), ("grpc-message", f"stream {stream}")])
        return frame(HEADERS, END_HEADERS | END_STREAM, stream, block)

    def answer(self, stream: int, status: int = 0) -> bytes:
        return self.start(stream) + self.end(stream, status)


@pytest.fixture(params=["server", "client"])
def pair(request: pytest.FixtureRequest, watched: Watched) -> Iterator[RemotePair]:
    """This process is one end, and wants answers."""
    watched.capture.want_answers(os.getpid(), watched.row, True)
    pair = RemotePair(request.param)
    pair.send(PREFACE + SETTINGS)
    yield pair
    pair.close()


def finished(watched: Watched, count: int) -> list[Exchange]:
    """So many exchanges have been handed over whole."""

    def whole() -> list[Exchange]:
        conversations, found = Conversations(), list[Exchange]()
        exchanges = Exchanges(lambda exchange, process: found.append(exchange), random.Random(1))
        for entry in watched.emitted():
            exchanges.take(entry, conversations.read(entry), Peer(1, 1, Labels("shop")))
        return found if len(found) >= count else []

    exchanges: list[Exchange] = eventually(whole, f"{count} exchanges")
    assert len(exchanges) == count
    return exchanges


def test_each_call_ends_with_its_own_status(watched: Watched, pair: RemotePair) -> None:
    client, server = Client(), Server()
    pair.send(*(client.request() for _ in range(20)))
    streams = list(range(1, 41, 2))
    random.Random(5).shuffle(streams)
    for stream in streams:
        pair.answer(server.answer(stream, stream % 17))
    exchanges = finished(watched, 20)
    assert [exchange.status for exchange in exchanges] == [stream % 17 for stream in streams]
    assert {exchange.rpc_method for exchange in exchanges} == {"Get"}
    assert {exchange.server for exchange in exchanges} == {pair.here == "server"}
    assert all(exchange.start_ns < exchange.end_ns for exchange in exchanges)
    kept = watched.counts().kept if pair.here == "server" else watched.counts().reverse_kept
    assert kept[EntryKind.GRPC] == 20


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 5000), max_size=30))
def test_any_cuts_leave_every_status_as_it_is(watched: Watched, cuts: list[int]) -> None:
    watched.capture.want_answers(os.getpid(), watched.row, True)
    pair, client, server = RemotePair(), Client(), Server()
    before = len(watched.emitted())
    pair.send(PREFACE, *(client.request() for _ in range(20)))
    data = SETTINGS + b"".join(server.answer(stream, stream % 17) for stream in range(1, 41, 2))
    for part in chunks(data, cuts):
        pair.answer(part)
    pair.close()

    def statuses() -> list[int | None]:
        conversations, found = Conversations(), list[Exchange]()
        exchanges = Exchanges(lambda exchange, process: found.append(exchange), random.Random(1))
        for entry in watched.emitted()[before:]:
            exchanges.take(entry, conversations.read(entry), Peer(1, 1, Labels("shop")))
        return [exchange.status for exchange in found]

    expected = [stream % 17 for stream in range(1, 41, 2)]
    eventually(lambda: statuses() == expected, f"the statuses {expected}")


def test_answers_to_dropped_calls_only_keep_the_header_table(watched: Watched, pair: RemotePair) -> None:
    watched.set(abi.encode_word(0, Mode.FOLLOW, emit=True))
    client, server = Client(), Server()
    for stream in range(1, 61, 2):
        pair.send(client.request(traceparent(stream, stream % 6 == 1)))
        pair.answer(server.answer(stream, stream % 17))
    assert [exchange.status for exchange in finished(watched, 10)] == [stream % 17 for stream in range(1, 61, 6)]


def test_many_open_streams_are_all_answered(watched: Watched, pair: RemotePair) -> None:
    """More than there are places for, so that several have the same one."""
    client, server = Client(), Server()
    count = 3 * KEPT
    for _ in range(count):
        pair.send(client.request())
    for stream in range(1, 2 * count, 2):
        pair.answer(server.answer(stream, stream % 17))
    assert [exchange.status for exchange in finished(watched, count)] == [s % 17 for s in range(1, 2 * count, 2)]


def test_a_stream_may_be_reset_by_either_side(watched: Watched, pair: RemotePair) -> None:
    client, server = Client(), Server()
    pair.send(client.request(), client.request(), client.request())
    pair.answer(server.start(1))
    pair.send(frame(RST_STREAM, 0, 1, b"\0\0\0\x08"))
    pair.answer(frame(RST_STREAM, 0, 3, b"\0\0\0\x0b"))
    pair.answer(server.answer(5, 5) + frame(RST_STREAM, 0, 5, bytes(4)))
    exchanges = finished(watched, 3)
    assert [exchange.status for exchange in exchanges] == [1, 8, 5]  # CANCELLED, RESOURCE_EXHAUSTED, NOT_FOUND
    assert {exchange.end for exchange in exchanges} == {"answered"}


def test_data_may_end_a_stream_and_headers_may_be_in_pieces(watched: Watched, pair: RemotePair) -> None:
    client, encoder = Client(grpc=False), Encoder()
    pair.send(client.request(), client.request())
    block = encoder.encode([(":status", "404"), ("server", "shop")])
    pair.answer(
        frame(HEADERS, PADDED, 1, b"\3" + block[:2] + bytes(3)) + frame(CONTINUATION, END_HEADERS, 1, block[2:])
    )
    pair.answer(frame(DATA, 0, 1, bytes(70_000)) + frame(DATA, END_STREAM, 1, bytes(100)))
    block = encoder.encode([(":status", "204"), ("server", "shop")])
    pair.answer(frame(HEADERS, END_STREAM, 3, block[:1]) + frame(CONTINUATION, END_HEADERS, 3, block[1:]))
    exchanges = finished(watched, 2)
    assert [(exchange.status, exchange.method) for exchange in exchanges] == [(404, "POST"), (204, "POST")]
    assert [exchange.request_body_bytes for exchange in exchanges] == [8, 8]
    assert [exchange.response_body_bytes for exchange in exchanges] == [70_100, 0]


def test_bodies_are_measured_however_their_frames_lie(watched: Watched, pair: RemotePair) -> None:
    client, encoder = Client(grpc=False), Encoder()
    for size in (10, 0, 5000):
        pair.send(client.request(data=bytes(size)))
    pair.send(client.request()[: -9 - 8] + frame(DATA, 0, 7, bytes(20)) + frame(DATA, PADDED, 7, b"\4" + bytes(14)))
    begin = encoder.encode([(":status", "200")])
    pair.answer(b"".join(frame(HEADERS, END_HEADERS, stream, begin) for stream in (1, 3, 5, 7)))
    pair.answer(b"".join(frame(DATA, 0, stream, bytes(100 * stream)) for stream in (1, 3, 5)))
    pair.answer(frame(DATA, 0, 5, bytes(20_000)) + frame(DATA, END_STREAM, 3, b"") + frame(DATA, END_STREAM, 1, b"end"))
    pair.answer(frame(HEADERS, END_HEADERS | END_STREAM, 5, encoder.encode([("digest", "x")])))
    pair.answer(frame(DATA, END_STREAM, 7, b"whole"))
    sizes = [(exchange.request_body_bytes, exchange.response_body_bytes) for exchange in finished(watched, 4)]
    assert sizes == [(0, 300), (10, 103), (5000, 20_500), (None, 5)]


def test_the_middle_of_a_connection_is_joined_at_a_frame(watched: Watched) -> None:
    """What only its header table knows is not said: neither the path, nor the content type, nor gRPC's status."""
    watched.capture.remove_target(os.getpid())
    pair, client, server = RemotePair(), Client(), Server()
    pair.send(PREFACE + SETTINGS, client.request())
    pair.answer(server.answer(1, 7))
    watched.capture.add_target(os.getpid(), watched.row, answers=True)
    for stream in (3, 5):
        pair.send(client.request())
        answer = server.answer(stream, 7)
        pair.answer(answer[:20])
        pair.answer(answer[20:])
    exchanges = finished(watched, 2)
    pair.close()
    said = [(exchange.protocol, exchange.status, exchange.method, exchange.path) for exchange in exchanges]
    assert said == [("http", 200, "POST", "")] * 2
    assert {exchange.end for exchange in exchanges} == {"answered"}


def test_a_client_that_leaves_ends_its_streams(watched: Watched) -> None:
    watched.capture.want_answers(os.getpid(), watched.row, True)
    pair, client = RemotePair(), Client()
    pair.send(PREFACE, client.request(), client.request())
    pair.shut()
    assert pair.server.recv(10) == b""
    pair.close()
    assert {exchange.end for exchange in finished(watched, 2)} == {"connection_closed"}


def test_where_no_answer_is_wanted_none_is_handed_over(watched: Watched) -> None:
    pair, client, server = RemotePair(), Client(), Server()
    pair.send(PREFACE, client.request())
    pair.answer(server.answer(1))
    pair.send(client.request())
    pair.close()
    records = watched.entries(2)
    assert [record.event for record in records] == [Event.ENTRY, Event.ENTRY]
    assert not records[0].flags & RecordFlag.SENT
