"""A server of HTTP/2 and its clients: one that h2 keeps, and one that sends what it likes."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from h2 import events
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from hpack import Encoder

from spandial_agent.serving import http2
from spandial_agent.serving.connections import Connections
from spandial_agent.serving.http2 import PREFACE, Request, Response
from spandial_agent.serving.http2_server import Http2Server
from tests.agent_process import PATIENCE_S
from tests.spandial_agent.serving.frames import frame

__all__ = ["BEGIN", "FIELDS", "Client", "connected", "echo", "request", "send", "serving"]

DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 8, 9
FIELDS = [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "127.0.0.1")]
BEGIN = PREFACE + frame(SETTINGS, 0, 0)


async def echo(request: Request) -> Response:
    return Response({":status": "200"}, request.body, {"length": str(len(request.body))})


@asynccontextmanager
async def serving(
    answer: http2.Answer = echo, refused: Counter[str] | None = None, patience_s: float = PATIENCE_S
) -> AsyncIterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with Http2Server(answer, Connections(patience_s=patience_s, refused=refused)).running(listener):
            yield listener.getsockname()[1]


class Client:
    """A connection that is kept by h2.

    Attributes:
        seen: what has come.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, window: int = 65535) -> None:
        self.reader, self.writer = reader, writer
        self.http2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self.http2.local_settings.initial_window_size = window
        self.http2.local_settings.acknowledge()
        self.http2.initiate_connection()
        self.seen: list[events.Event] = []

    def ask(self, body: bytes = b"hello", end: bool = True) -> int:
        stream = self.http2.get_next_available_stream_id()
        self.http2.send_headers(stream, FIELDS)
        self.http2.send_data(stream, body, end_stream=end)
        return stream

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.writer.write(self.http2.data_to_send())
            data = await asyncio.wait_for(self.reader.read(4096), PATIENCE_S)
            assert data, self.seen
            for event in self.http2.receive_data(data):
                self.seen.append(event)
                if isinstance(event, events.DataReceived):
                    self.http2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)

    def of(self, kind: type[events.Event], stream: int | None = None) -> list[events.Event]:
        return [
            event for event in self.seen if isinstance(event, kind) and stream in (None, getattr(event, "stream_id", 0))
        ]

    async def answer(self, stream: int) -> bytes:
        await self.until(lambda: bool(self.of(events.StreamEnded, stream)))
        parts = self.of(events.DataReceived, stream)
        return b"".join(part.data for part in parts if isinstance(part, events.DataReceived))

    async def goodbye(self) -> ErrorCodes | int | None:
        await self.until(lambda: bool(self.of(events.ConnectionTerminated)))
        [event] = self.of(events.ConnectionTerminated)
        assert isinstance(event, events.ConnectionTerminated)
        return event.error_code


@asynccontextmanager
async def connected(port: int, window: int = 65535) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    yield Client(reader, writer, window)
    writer.close()


async def send(port: int, *sent: bytes, end: bool = False) -> None:
    """Until the server ends the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for piece in sent:
            writer.write(piece)
            await asyncio.sleep(0)
        if end:
            writer.write_eof()
        while await asyncio.wait_for(reader.read(4096), PATIENCE_S):
            pass
    except OSError:
        pass
    writer.close()


def request(stream: int, body: bytes = b"hello", encoder: Encoder | None = None) -> bytes:
    return frame(HEADERS, 4, stream, (encoder or Encoder()).encode(FIELDS)) + frame(DATA, 1, stream, body)
