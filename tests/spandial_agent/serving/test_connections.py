"""How many connections there may be, and for how long each may keep the agent waiting."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from spandial_agent.serving.binding import bind_tcp
from spandial_agent.serving.connections import BoundedProtocol, Connections
from spandial_agent.serving.peers import Peers
from spandial_api.peers import Peer, peer_of
from tests.agent_process import PATIENCE_S, eventually

pytestmark = pytest.mark.anyio

_PYTHON = os.path.realpath(sys.executable)  # others may not reach the virtual environment
HALF_A_HEAD = b"GET / HTTP/1.1\r\nHost: x\r\nX: "
HALF_A_BODY = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf"
STREAM = b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n"


class Clock:
    """Seconds, which a test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Says who asks, after the request's body; /stream does not end until the client has gone."""
    while (await receive()).get("more_body"):
        pass
    peer = peer_of(scope)
    body = f"{peer.name} {peer.serial}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    gone = asyncio.ensure_future(receive())
    while scope["path"] == "/stream" and not gone.done():
        await send({"type": "http.response.body", "body": b"x" * 4096, "more_body": True})
        await asyncio.sleep(0)
    gone.cancel()
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def serving(connections: Connections) -> AsyncIterator[int]:
    """The port."""
    with bind_tcp("127.0.0.1", 0) as listener:
        protocol = functools.partial(BoundedProtocol, connections=connections)
        options = {"log_config": None, "lifespan": "off", "timeout_graceful_shutdown": 1, "ws": "none"}
        config = uvicorn.Config(application, http=protocol, **options)  # type: ignore[arg-type]
        server = uvicorn.Server(config)
        running = asyncio.create_task(server._serve([listener]))
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            await asyncio.wait_for(running, PATIENCE_S)


async def until(condition: Callable[[], Any], what: str = "what is waited for") -> Any:
    return await asyncio.to_thread(eventually, condition, what)


async def opened(port: int, *sent: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for part in sent:
        writer.write(part)
        await writer.drain()
    return reader, writer


async def said(reader: asyncio.StreamReader) -> bytes:
    with contextlib.suppress(ConnectionError):
        return await asyncio.wait_for(reader.read(), PATIENCE_S)
    return b""


@pytest.mark.parametrize(("sent", "reason"), [(b"", "head"), (HALF_A_HEAD, "head"), (HALF_A_BODY, "body")])
async def test_a_request_that_does_not_come_is_waited_for_only_so_long(sent: bytes, reason: str) -> None:
    clock = Clock()
    connections = Connections(patience_s=10, now=clock)
    async with serving(connections) as port:
        reader, writer = await opened(port, sent)
        await until(lambda: len(connections) == 1)
        await asyncio.sleep(0.1)
        clock.now += 9
        connections.sweep()
        assert len(connections) == 1
        writer.write(b"x")  # a byte now and then buys no time
        await asyncio.sleep(0.1)
        clock.now += 2
        connections.sweep()
        assert len(connections) == 0
        assert connections.refused[reason] == 1
        assert b" 408 " in await said(reader)
        writer.close()


async def test_an_answer_that_nobody_reads_is_waited_for_only_so_long() -> None:
    clock = Clock()
    connections = Connections(patience_s=10, now=clock)
    async with serving(connections) as port:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(STREAM)
            [connection] = await until(lambda: all_of(connections))
            await until(lambda: connection.flow.write_paused)
            clock.now += 11
            connections.sweep()
            assert connections.refused["unread"] == 1
            await until(lambda: not connection.server_state.tasks)  # nothing runs on for nobody


def all_of(connections: Connections) -> list[BoundedProtocol]:
    return [each for own in list(connections._of.values()) for each in list(own)]


async def test_a_request_that_is_being_answered_is_not_hurried() -> None:
    clock = Clock()
    connections = Connections(patience_s=10, now=clock)
    async with serving(connections) as port:
        reader, writer = await opened(port, STREAM)
        assert await reader.read(100)
        clock.now += 3600
        [connection] = await until(lambda: all_of(connections))
        for _ in range(100):
            assert await asyncio.wait_for(reader.read(1 << 20), PATIENCE_S)
            if connection._stuck_since is None:
                connections.sweep()
        assert len(connections) == 1
        writer.close()


async def test_of_one_peer_there_may_be_only_so_many_at_work() -> None:
    connections = Connections(total=100, each=3)
    async with serving(connections) as port:
        busy = [await opened(port, HALF_A_BODY) for _ in range(3)]
        await until(lambda: len(connections) == 3)
        await asyncio.sleep(0.1)
        reader, writer = await opened(port)
        assert b" 503 " in await said(reader)
        assert len(connections) == 3
        for _, each in [*busy, (reader, writer)]:
            each.close()
        await until(lambda: len(connections) == 0)
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"http://127.0.0.1:{port}/")).status_code == 200


async def test_a_peers_own_idle_connection_makes_room_for_its_next_one() -> None:
    connections = Connections(total=100, each=3)
    async with serving(connections) as port:
        idle = [await opened(port) for _ in range(3)]
        await until(lambda: len(connections) == 3)
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"http://127.0.0.1:{port}/")).status_code == 200
        assert b" 503 " in await said(idle[0][0])
        for _, writer in idle:
            writer.close()


async def test_where_there_are_too_many_in_all_the_one_who_has_most_gives_way() -> None:
    connections = Connections(total=6, each=5)
    named = iter(["greedy"] * 5 + ["modest"] * 2 + ["new"])
    connections.peers.at = lambda client, server: Peer(next(named))  # type: ignore[method-assign]
    async with serving(connections) as port:
        greedy = [await opened(port, HALF_A_BODY) for _ in range(5)]
        await until(lambda: len(connections) == 5)
        others = [await opened(port, HALF_A_HEAD)]
        await until(lambda: len(connections) == 6)
        await asyncio.sleep(0.1)
        others += [await opened(port, HALF_A_HEAD) for _ in range(2)]
        assert b" 503 " in await said(greedy[0][0])
        await until(lambda: sorted(map(len, connections._of.values())) == [1, 2, 3])
        for _, writer in [*greedy, *others]:
            writer.close()


async def test_each_connection_has_a_number_of_its_own() -> None:
    async with serving(Connections()) as port:
        url = f"http://127.0.0.1:{port}/"
        async with httpx.AsyncClient() as one, httpx.AsyncClient() as other:
            first, again = (await one.get(url)).text, (await one.get(url)).text
            assert first == again
            assert first.startswith(f"uid {os.geteuid()} ")
            assert (await other.get(url)).text != first


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be anybody")
async def test_the_kernel_says_who_has_connected() -> None:
    connect = "import socket, sys; s = socket.create_connection(('127.0.0.1', int(sys.argv[1]))); sys.stdin.read()"
    connections = Connections()
    async with serving(connections) as port:
        process = await asyncio.create_subprocess_exec(
            *(_PYTHON, "-I", "-c", connect, str(port)),
            stdin=subprocess.PIPE,
            user=4321,
            cwd="/",
        )
        await until(lambda: set(connections._of) == {"uid 4321"})
        process.kill()
        await process.wait()
        await until(lambda: len(connections) == 0)


@pytest.mark.parametrize(
    ("client", "server", "peer"),
    [
        (("192.0.2.7", 5), ("192.0.2.8", 5778), "192.0.2.7"),
        (("::ffff:192.0.2.7", 5), ("::ffff:192.0.2.8", 5778), "192.0.2.7"),
        (("2001:db8:1:2:3::4", 5), ("2001:db8::1", 5778), "2001:db8:1:2::/64"),
        (("127.0.0.1", 1), ("127.0.0.1", 2), "127.0.0.1"),
        (("fe80::1%eth0", 5), ("fe80::2%eth0", 5778), "fe80::/64"),
        (None, ("/run/api.sock", None), "somewhere"),
    ],
)
async def test_where_the_kernel_does_not_know_it_is_the_address(
    client: tuple[str, int] | None, server: tuple[str, int | None], peer: str
) -> None:
    found = Peers().at(client, server)
    assert (found.name, found.uid) == (peer, None)


async def test_over_the_unix_socket_it_is_the_user(tmp_path: Path) -> None:
    from spandial_agent.serving.binding import bind_unix
    from spandial_agent.serving.listeners import serve

    stop = asyncio.Event()
    with bind_tcp("127.0.0.1", 0) as tcp, bind_unix(tmp_path / "api.sock", "no-group-of-this-name") as unix:
        running = asyncio.create_task(serve(application, tcp, unix, stop))
        async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(tmp_path / "api.sock"))) as client:
            assert (await client.get("http://node/")).text.startswith(f"uid {os.geteuid()} ")
        stop.set()
        await asyncio.wait_for(running, PATIENCE_S)
