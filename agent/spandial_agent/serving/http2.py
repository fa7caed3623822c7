"""HTTP/2 on a connection, bounded by peer as HTTP/1.1 is: each request is answered when it is whole.

The protocol itself is the library h2's. Here is who may ask, how much and for how long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

from h2 import events
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.exceptions import DenialOfServiceError, ProtocolError
from h2.settings import SettingCodes
from hpack import NeverIndexedHeaderTuple

from spandial_agent.serving.connections import Connections
from spandial_api.node import Connection
from spandial_api.peers import Peer
from spandial_api.turns import Turns
from spandial_api.write_limit import RateLimit

__all__ = ["FRAME_MAX", "PREFACE", "Answer", "Http2Connection", "Request", "Response", "Shares"]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

_REQUESTS_PER_SECOND = 100  # of a peer: more have to wait
_FRAMES_PER_SECOND = 1_000  # of a peer: who sends more is sent away
_CALLS = 8  # of a connection at a time
FRAME_MAX = _HEAD_MAX = 16 << 10  # bytes
_BODY_MAX = 32 << 10  # bytes
_SETTINGS_MAX = 64  # of a client: h2 keeps also those that it does not know
_IDLE_S = 300.0  # clients ask every minute

_HEADERS, _CONTINUATION, _END_HEADERS = 1, 9, 4  # RFC 9113, section 6


class Request(NamedTuple):
    """A request, with the first of its fields of each name; its body is cut where it is longer than 32 KiB."""

    fields: Mapping[str, str]
    body: bytes
    peer: Peer
    connection: Connection


class Response(NamedTuple):
    """An answer. It has trailers."""

    fields: Mapping[str, str]
    body: bytes
    trailers: Mapping[str, str]


Answer = Callable[[Request], Awaitable[Response]]


class Shares:
    """What the connections of a listener share.

    Args:
        answer: to a request. It raises nothing.
        connections: bounds them.

    Attributes:
        ending: no request is answered any more.
    """

    def __init__(self, answer: Answer, connections: Connections) -> None:
        self.answer, self.connections = answer, connections
        self.ending = False
        self._turns = Turns()
        self._frames = RateLimit(_FRAMES_PER_SECOND, 2 * _FRAMES_PER_SECOND)
        self._requests = RateLimit(_REQUESTS_PER_SECOND, 2 * _REQUESTS_PER_SECOND)

    async def take_frame(self, peer: str) -> None:
        """Wait until it is this peer's turn. Raises DenialOfServiceError for who sends too many."""
        if self._frames.take(peer, self.connections.now()):
            raise DenialOfServiceError
        await self._turns.take(peer)

    async def begin(self, peer: str) -> None:
        """Wait until a request of this peer may begin."""
        wait = self._requests.take(peer, self.connections.now())
        while wait:
            await asyncio.sleep(wait)
            wait = self._requests.take(peer, self.connections.now())


class _Http2(H2Connection):
    DEFAULT_MAX_HEADER_LIST_SIZE = _HEAD_MAX
    MAX_CLOSED_STREAMS = 256  # that are remembered


class Http2Connection:
    """One connection.

    Attributes:
        peer: who has made it.
        since: when it was made, or a request was answered.
        answers: those that are being made or sent, by stream.
        task: reads what the client sends.
    """

    task: asyncio.Task[None]

    def __init__(
        self,
        shares: Shares,
        peer: Peer,
        connection: Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.peer, self._connection = peer, connection
        self._shares, self._now = shares, shares.connections.now
        self.since = self._now()
        self.answers: dict[int, asyncio.Task[None]] = {}
        self._reader, self._writer = reader, writer
        self._http2 = _Http2(H2Configuration(client_side=False, header_encoding="latin-1"))
        self._requests: dict[int, tuple[dict[str, str], bytearray]] = {}  # that are not whole, with their bodies
        self._waits: dict[int | str, tuple[str, float]] = {"frame": ("head", self.since)}  # for what, by stream too
        self._head = 0  # bytes of a head that is not whole
        self._room = asyncio.Event()
        self._draining = asyncio.Lock()

    @property
    def idle(self) -> bool:
        return not self.answers

    def waited_for(self, before: float) -> str:
        return next((what for what, since in self._waits.values() if since < before), "")

    def end(self, status: int, sentence: str) -> None:
        """HTTP/2 has no answer for a connection: gRPC's clients try again later by themselves."""
        self._shares.connections.leave(self, self.peer.name)
        self.close(ErrorCodes.ENHANCE_YOUR_CALM if status == 408 else ErrorCodes.NO_ERROR)

    def close(self, why: ErrorCodes | None = None) -> None:
        """Say so, and end. What was sent last is still to be read."""
        if why is not None:
            self._http2.close_connection(why)
        if not self._writer.is_closing():
            self._writer.write(self._http2.data_to_send())
            self._writer.close()
        if self._writer.transport.get_write_buffer_size() or self._writer.get_extra_info("sslcontext") is not None:
            self._writer.transport.abort()  # who does not read now never will, nor say goodbye
        for task in (self.task, *self.answers.values()):
            task.cancel()

    async def run(self) -> None:
        """Until one of both sides ends."""
        why = None
        try:
            await self._take_frames()
        except ProtocolError as error:
            self._shares.connections.refused["protocol"] += 1
            if isinstance(error, DenialOfServiceError):  # of all else the client is told by h2
                why = error.error_code
        except asyncio.TimeoutError:
            why = ErrorCodes.NO_ERROR
        except (OSError, EOFError):
            pass  # the client has gone
        finally:
            self.close(why)

    async def _take_frames(self) -> None:
        """One in each round of the event loop, of each peer in turn."""
        preface = await self._reader.readexactly(len(PREFACE))
        if preface != PREFACE:
            raise ProtocolError  # nothing is said: it may be a browser
        del self._waits["frame"]
        self._http2.initiate_connection()
        self._http2.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: _CALLS})
        self._http2.receive_data(preface)
        await self._flush()
        while True:
            frame = await asyncio.wait_for(self._frame(), _IDLE_S)
            await self._shares.take_frame(self.peer.name)
            for event in self._http2.receive_data(frame):
                if isinstance(event, events.ConnectionTerminated):
                    return
                if isinstance(event, events.RequestReceived):
                    await self._shares.begin(self.peer.name)
                self._take(event)
            if len(self._http2.remote_settings) > _SETTINGS_MAX:
                raise DenialOfServiceError
            self._waits["drain"] = ("unread", self._now())
            await self._flush()
            del self._waits["drain"]

    async def _frame(self) -> bytes:
        """The next one, unless it is too long. What it says is for h2."""
        head = await self._reader.readexactly(1)
        self._waits.setdefault("frame", ("head", self._now()))
        head += await self._reader.readexactly(8)
        length, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
        of_head = kind in (_HEADERS, _CONTINUATION)
        self._head += length if of_head else 0
        if length > FRAME_MAX or self._head > _HEAD_MAX:
            raise DenialOfServiceError
        payload = await self._reader.readexactly(length)
        if not of_head or flags & _END_HEADERS:
            self._head = 0
            del self._waits["frame"]
        return head + payload

    def _take(self, event: events.Event) -> None:
        if isinstance(event, events.RequestReceived):
            if self._shares.ending or self._http2.open_inbound_streams > _CALLS:
                self._http2.reset_stream(event.stream_id, ErrorCodes.REFUSED_STREAM)  # it may be sent again
                return
            fields = {str(name): str(value) for name, value in reversed(event.headers)}
            self._requests[event.stream_id] = (fields, bytearray())
            self._waits[event.stream_id] = ("body", self._now())
        elif isinstance(event, events.DataReceived):
            self._http2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            if event.stream_id in self._requests:
                _, body = self._requests[event.stream_id]
                body += event.data
                if len(body) > _BODY_MAX:
                    self._begin(event.stream_id)
        elif isinstance(event, events.StreamEnded) and event.stream_id in self._requests:
            self._begin(event.stream_id)
        elif isinstance(event, events.StreamReset):
            self._requests.pop(event.stream_id, None)
            self._waits.pop(event.stream_id, None)
            if event.stream_id in self.answers:
                self.answers[event.stream_id].cancel()
        elif isinstance(event, (events.WindowUpdated, events.RemoteSettingsChanged)):
            self._room.set()

    def _begin(self, stream: int) -> None:
        """To answer."""
        fields, body = self._requests.pop(stream)
        del self._waits[stream]
        request = Request(fields, bytes(body), self.peer, self._connection)
        self.answers[stream] = asyncio.create_task(self._answer(stream, request))
        self.answers[stream].add_done_callback(lambda task: self._answered(stream))

    def _answered(self, stream: int) -> None:
        self.since = self._now()
        del self.answers[stream]
        self._waits.pop(stream, None)

    async def _answer(self, stream: int, request: Request) -> None:
        response = await self._shares.answer(request)
        self._waits[stream] = ("unread", self._now())
        try:
            self._http2.send_headers(stream, _fields(response.fields))
            await self._send(stream, response.body)
            self._http2.send_headers(stream, _fields(response.trailers), end_stream=True)
            if not self._http2.streams[stream].closed:
                self._http2.reset_stream(stream, ErrorCodes.NO_ERROR)  # the rest of the request is not wanted
            await self._flush()
        except (ProtocolError, OSError):
            pass  # the client wants no answer any more

    async def _send(self, stream: int, body: bytes) -> None:
        """As the client opens its window."""
        rest = memoryview(body)
        while rest:
            size = min(self._http2.local_flow_control_window(stream), FRAME_MAX, len(rest))
            if size > 0:
                self._http2.send_data(stream, bytes(rest[:size]))
                rest = rest[size:]
                await self._flush()
            else:
                self._room.clear()
                await self._room.wait()

    async def _flush(self) -> None:
        self._writer.write(self._http2.data_to_send())
        async with self._draining:
            await self._writer.drain()


def _fields(named: Mapping[str, str]) -> list[NeverIndexedHeaderTuple]:
    """Of which nothing is remembered for the next answer: the client would say how much."""
    return [NeverIndexedHeaderTuple(name, value) for name, value in named.items()]
