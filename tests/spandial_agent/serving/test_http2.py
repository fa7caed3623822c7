"""HTTP/2 on a listener: what a client may send, how much and for how long."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

import pytest
from h2 import events
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hpack import Encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from spandial_agent.serving import http2
from spandial_agent.serving.http2 import PREFACE, Request, Response
from tests.agent_process import PATIENCE_S
from tests.spandial_agent.serving.frames import frame
from tests.spandial_agent.serving.http2_client import (
    BEGIN,
    CONTINUATION,
    DATA,
    FIELDS,
    HEADERS,
    PING,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    connected,
    echo,
    request,
    send,
    serving,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_a_request_is_answered_and_then_the_next() -> None:
    async with serving() as port, connected(port) as client:
        for body in (b"", b"hello", bytes(20_000)):
            assert await client.answer(client.ask(body[:16000])) == body[:16000]
        assert not client.http2.decoder.header_table.dynamic_entries, "the client says how much would be remembered"


def cuts(data: st.DataObject, sent: bytes) -> list[bytes]:
    at = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=8)))
    return [sent[begin:end] for begin, end in zip([0, *at], [*at, len(sent)])]


def conversation(bodies: Sequence[bytes]) -> bytes:
    """Requests, with whatever else an honest client may send in between."""
    encoder, sent = Encoder(), BEGIN + frame(SETTINGS, 1, 0) + frame(WINDOW_UPDATE, 0, 0, b"\0\1\0\0")
    for number, body in enumerate(bodies):
        block, stream = encoder.encode([*FIELDS, ("number", str(number))]), 2 * number + 1
        sent += frame(PING, 0, 0, bytes(8)) + frame(HEADERS, 0, stream, block[:5])
        sent += frame(CONTINUATION, 4, stream, block[5:]) + frame(DATA, 9, stream, b"\3" + body + bytes(3))
        sent += frame(77, 0, stream, b"unknown")
    return sent


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_however_a_conversation_is_cut_it_is_answered(data: st.DataObject) -> None:
    bodies = data.draw(st.lists(st.binary(max_size=20), max_size=8))

    async def converse() -> None:
        async with serving() as port, connected(port) as client:
            client.http2.data_to_send()
            for piece in cuts(data, conversation(bodies)):
                client.writer.write(piece)
                await asyncio.sleep(0)
            for number, _ in enumerate(bodies):
                client.http2.send_headers(2 * number + 1, FIELDS, end_stream=True)
            client.http2.data_to_send()
            for number, body in enumerate(bodies):
                assert await client.answer(2 * number + 1) == body

    asyncio.run(converse())


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_whatever_comes_the_next_client_is_answered(data: st.DataObject) -> None:
    kinds = st.one_of(
        st.binary(max_size=60),
        st.builds(frame, st.integers(0, 12), st.integers(0, 255), st.integers(0, 9), st.binary(max_size=40)),
        st.builds(request, st.integers(0, 9), st.binary(max_size=9)),
    )
    sent = b"".join(data.draw(st.lists(kinds, max_size=6)))

    async def talk() -> None:
        failed: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: failed.append(context))
        async with serving() as port, connected(port) as honest:
            await send(port, *cuts(data, data.draw(st.sampled_from([b"", PREFACE, BEGIN])) + sent), end=True)
            assert await honest.answer(honest.ask()) == b"hello"
        assert not failed

    asyncio.run(talk())


@pytest.mark.parametrize(
    "sent",
    [
        frame(DATA, 0, 1, bytes(1 + (16 << 10))),
        frame(HEADERS, 0, 1, bytes(16 << 10)) + frame(CONTINUATION, 0, 1, bytes(1)),
        frame(HEADERS, 4, 1, b"\x40\x01a\x7f\x81\x1e" + bytes(4000) + b"\xbe" * 12000),  # one field, often
        frame(HEADERS, 4, 1, b"\x3f\xe1\xff\x03\x82"),  # a table of 64 KiB
        frame(HEADERS, 4, 1, Encoder().encode([*FIELDS, ("Upper", "case")])),
        frame(SETTINGS, 0, 0, b"".join(code.to_bytes(2, "big") + bytes(4) for code in range(100, 200))),
        frame(PING, 0, 0, bytes(8)) * 4000,
        frame(SETTINGS, 0, 0) * 4000,
        frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\1") * 4000,
        request(1) + frame(RST_STREAM, 0, 1, bytes(4)) * 4000,
        request(1, bytes(9)) * 2,
    ],
    ids=["frame", "block", "list", "table", "field", "settings", "ping", "set", "window", "reset", "twice"],
)
async def test_more_than_anybody_needs_ends_the_connection(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http2, "_FRAMES_PER_SECOND", 100)
    refused: Counter[str] = Counter()
    async with serving(refused=refused) as port:
        await send(port, BEGIN, sent)
        assert refused == {"protocol": 1}


async def test_who_is_sent_away_is_told_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http2, "_FRAMES_PER_SECOND", 10)
    async with serving() as port, connected(port) as client:
        while not client.of(events.ConnectionTerminated):
            client.http2.ping(bytes(8))
            count = len(client.seen)
            await client.until(lambda: len(client.seen) > count)  # noqa: B023
        assert await client.goodbye() == ErrorCodes.ENHANCE_YOUR_CALM


async def test_more_requests_at_a_time_may_be_sent_again() -> None:
    async with serving() as port, connected(port) as client:
        streams = [client.ask(end=False) for _ in range(10)]
        await client.until(lambda: len(client.of(events.StreamReset)) == 2)
        refused = [event for event in client.seen if isinstance(event, events.StreamReset)]
        assert {event.error_code for event in refused} == {ErrorCodes.REFUSED_STREAM}
        assert client.http2.remote_settings[SettingCodes.MAX_CONCURRENT_STREAMS] == 8
        for stream in streams[:8]:
            client.http2.end_stream(stream)
            assert await client.answer(stream) == b"hello"


async def test_a_body_that_is_too_long_is_not_read_to_its_end() -> None:
    async with serving() as port, connected(port) as client:
        stream = client.ask(b"", end=False)
        for _ in range(3):
            client.http2.send_data(stream, bytes(16 << 10))
        assert len(await client.answer(stream)) > 32 << 10
        await client.until(lambda: bool(client.of(events.StreamReset, stream)))
        assert await client.answer(client.ask()) == b"hello"


async def large(request: Request) -> Response:
    return Response({":status": "200"}, bytes(range(256)) * 200, {"end": "yes"})


@pytest.mark.parametrize("window", [200, 1 << 20])
async def test_a_large_answer_comes_as_fast_as_its_client_reads(window: int) -> None:
    async with serving(large) as port, connected(port, window) as client:
        assert await client.answer(client.ask()) == bytes(range(256)) * 200


async def test_an_answer_that_is_not_read_is_waited_for_only_so_long() -> None:
    refused: Counter[str] = Counter()
    async with serving(large, refused, patience_s=1.0) as port, connected(port, 0) as client:
        client.ask()
        assert await client.goodbye() == ErrorCodes.ENHANCE_YOUR_CALM
        assert refused == {"unread": 1}


async def test_a_frame_that_is_not_whole_is_waited_for_only_so_long() -> None:
    refused: Counter[str] = Counter()
    async with serving(refused=refused, patience_s=1.0) as port:
        halves = frame(PING, 0, 0, bytes(8))[:-1], frame(HEADERS, 0, 1, Encoder().encode(FIELDS))
        await asyncio.gather(*(send(port, BEGIN + half) for half in halves))
        assert refused == {"head": 2}


async def test_who_asks_nothing_for_long_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http2, "_IDLE_S", 0.2)
    async with serving() as port, connected(port) as client:
        assert await client.goodbye() == ErrorCodes.NO_ERROR


class Slow:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.asked, self.may, self.cancelled = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def answer(self, request: Request) -> Response:
        self.asked.set()
        try:
            await self.may.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return await echo(request)


async def test_who_takes_his_request_back_is_not_answered() -> None:
    slow = Slow()
    async with serving(slow.answer) as port, connected(port) as client:
        stream = client.ask()
        client.writer.write(client.http2.data_to_send())
        await asyncio.wait_for(slow.asked.wait(), PATIENCE_S)
        client.http2.reset_stream(stream)
        client.writer.write(client.http2.data_to_send())
        await asyncio.wait_for(slow.cancelled.wait(), PATIENCE_S)
        slow.may.set()
        assert await client.answer(client.ask(b"next")) == b"next"
        assert not client.of(events.ResponseReceived, stream)


async def test_who_goes_is_not_answered() -> None:
    slow = Slow()
    async with serving(slow.answer) as port:
        async with connected(port) as client:
            client.ask()
            client.writer.write(client.http2.data_to_send())
            await asyncio.wait_for(slow.asked.wait(), PATIENCE_S)
        await asyncio.wait_for(slow.cancelled.wait(), PATIENCE_S)


async def test_at_the_end_what_was_asked_is_answered_and_all_are_told() -> None:
    slow = Slow()
    server = serving(slow.answer)
    port = await server.__aenter__()
    async with connected(port) as client:
        stream = client.ask()
        client.writer.write(client.http2.data_to_send())
        await asyncio.wait_for(slow.asked.wait(), PATIENCE_S)
        asyncio.get_running_loop().call_later(0.05, slow.may.set)
        await server.__aexit__(None, None, None)
        assert await client.goodbye() == ErrorCodes.NO_ERROR
        assert client.of(events.StreamEnded, stream)
