"""How many connections there may be, of one peer and in all, and for how long each may keep the agent waiting."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from spandial_agent.serving.peers import Peers
from spandial_api.auth import TrustedListener
from spandial_api.peers import PEER, Peer

__all__ = ["Bounded", "BoundedProtocol", "Connections"]

_PEER_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid
_SWEEP_S = 1.0


class Bounded(Protocol):
    """A connection that may not keep the agent waiting.

    Attributes:
        since: when it was made, or the last request began or was answered.
    """

    since: float

    @property
    def idle(self) -> bool:
        """It has no request that is being answered."""

    def waited_for(self, before: float) -> str:
        """What has been waited for since before then, in one word; empty where nothing has."""

    def end(self, status: int, sentence: str) -> None:
        """End the connection, with an answer where one can still be sent."""


class Connections:
    """The connections of one listener.

    Args:
        total: how many there may be.
        each: how many of one peer.
        patience_s: for how long a peer may leave a request's head or body unfinished, or an answer unread.
        now: seconds of a monotonic clock.
        refused: where connections are counted that were ended for the others' sake, by reason.

    Attributes:
        on_made: called with the address of each that has been made, over TCP.
        peers: who has made them.
    """

    def __init__(
        self,
        total: int = 1024,
        each: int = 256,
        patience_s: float = 10.0,
        now: Callable[[], float] = time.monotonic,
        refused: Counter[str] | None = None,
    ) -> None:
        self.total, self.each, self.patience_s, self.now = total, each, patience_s, now
        self.refused: Counter[str] = Counter() if refused is None else refused
        self.on_made: Callable[[str], None] = lambda address: None
        self.peers = Peers()
        self._of: dict[str, dict[Bounded, None]] = {}  # by peer, in the order in which they came

    def __len__(self) -> int:
        return sum(map(len, self._of.values()))

    async def run(self) -> None:
        """End those that keep the agent waiting, until cancelled."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            self.sweep()

    def sweep(self) -> None:
        """End those that have kept the agent waiting for too long."""
        before = self.now() - self.patience_s
        for connection in [each for connections in self._of.values() for each in connections]:
            if reason := connection.waited_for(before):
                self.refused[reason] += 1
                connection.end(408, _LATE[reason])

    def admit(self, connection: Bounded, peer: str) -> bool:
        """Whether there is room for one more of a peer; it may be made where the peer itself, or the one who has the
        most, has a connection that does nothing."""
        own = self._of.setdefault(peer, {})
        room = True
        if len(own) >= self.each:
            room = self._make_room(own)
        elif len(self) >= self.total:
            most = max(self._of.values(), key=len)
            room = len(most) > len(own) and (self._make_room(most) or self._end(next(iter(most))))
        if room:
            own[connection] = None
        else:
            self.refused["connections"] += 1
        if not own:
            del self._of[peer]
        return room

    def leave(self, connection: Bounded, peer: str) -> None:
        own = self._of.get(peer, {})
        own.pop(connection, None)
        if not own:
            self._of.pop(peer, None)

    def _make_room(self, connections: dict[Bounded, None]) -> bool:
        idle = min((each for each in connections if each.idle), key=lambda each: each.since, default=None)
        return idle is not None and self._end(idle)

    def _end(self, connection: Bounded) -> bool:
        self.refused["connections"] += 1
        connection.end(503, _FULL)
        return True


_HEAD = b"HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
_LATE = {
    "head": "the head of a request did not come in time: send it at once",
    "body": "the body of a request did not come in time: send it at once",
    "unread": "",
}
_FULL = "there are too many connections: close those that are not needed, or try again later"


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 on a connection that may not keep the agent waiting.

    Args:
        connections: those of its listener.
        trusted: the peers of the listener need no token.
    """

    def __init__(self, *args: Any, connections: Connections, trusted: bool = False, **options: Any) -> None:
        super().__init__(*args, **options)
        self._connections = connections
        self._trusted = trusted
        self._peer = Peer("")
        self._stuck_since: float | None = None
        self.since = connections.now()  # it was made, or the last request began or was answered

    @property
    def idle(self) -> bool:
        """It has no request that is being answered."""
        return self.cycle is None or bool(self.cycle.response_complete)

    def waited_for(self, before: float) -> str:
        """What has been waited for since before then, in one word; empty where nothing has."""
        if self._stuck_since is not None:
            return "unread" if self._stuck_since < before else ""
        if self.since >= before or (not self.idle and not self.cycle.more_body):
            return ""
        return "head" if self.idle else "body"

    def end(self, status: int, sentence: str) -> None:
        """End the connection, with an answer where one can still be sent."""
        if self._stuck_since is None and (self.idle or not self.cycle.response_started) and sentence:
            body = json.dumps({"detail": sentence}).encode()
            phrase = {408: b"Request Timeout", 503: b"Service Unavailable"}[status]
            self.transport.write(_HEAD % (status, phrase, len(body)) + body)
        self._connections.leave(self, self._peer.name)
        self.transport.close()
        # What is not read now never will be; and TLS would wait 30 s for the peer's goodbye.
        if self.scheme == "https" or self._stuck_since is not None or self.transport.get_write_buffer_size():
            self.transport.abort()
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            self.flow.resume_writing()

    # What uvicorn calls.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self._trusted:
            credentials = transport.get_extra_info("socket").getsockopt(
                socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size
            )
            _, uid, _ = _PEER_CREDENTIALS.unpack(credentials)
            self.app = TrustedListener(self.app, uid)
            self._peer = self._connections.peers.user(uid)
        else:
            self._peer = self._connections.peers.at(self.client, self.server)
            if self.client is not None:
                self._connections.on_made(self.client[0])
        app, peer = self.app, self._peer

        async def by_this_connection(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, PEER: peer}, receive, send)

        self.app = by_this_connection
        if not self._connections.admit(self, peer.name):
            self.end(503, _FULL)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.leave(self, self._peer.name)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self.since = self._connections.now()

    def on_response_complete(self) -> None:
        self.since = self._connections.now()
        super().on_response_complete()

    def pause_writing(self) -> None:
        self._stuck_since = self._connections.now()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._stuck_since = None
        super().resume_writing()
