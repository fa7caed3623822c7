"""The HTTP listeners."""

from __future__ import annotations

import asyncio
import grp
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from spandial_agent.errors import SpandialError
from spandial_agent.server import bind_tcp, bind_unix, serve

NO_GROUP = "no-group-of-this-name"


@pytest.fixture
def tcp() -> Iterator[socket.socket]:
    with bind_tcp("127.0.0.1", 0) as listener:
        yield listener


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_without_the_group_the_socket_is_its_owners_alone(tmp_path: Path) -> None:
    with bind_unix(tmp_path / "api.sock", NO_GROUP):
        assert mode_of(tmp_path / "api.sock") == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to any group")
def test_with_the_group_its_members_may_write(tmp_path: Path) -> None:
    group = next(group for group in grp.getgrall() if group.gr_gid != os.getegid())
    with bind_unix(tmp_path / "api.sock", group.gr_name):
        assert mode_of(tmp_path / "api.sock") == 0o660
        assert (tmp_path / "api.sock").stat().st_gid == group.gr_gid


def test_binding_leaves_the_umask_as_it_was(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with bind_unix(tmp_path / "api.sock", NO_GROUP):
            assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


def test_a_socket_file_that_a_killed_agent_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    bind_unix(path, NO_GROUP).close()
    with bind_unix(path, NO_GROUP), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_a_port_that_is_taken_is_named_with_the_setting_for_another(tcp: socket.socket) -> None:
    port = tcp.getsockname()[1]
    with pytest.raises(SpandialError, match=rf"127\.0\.0\.1:{port} .*in use.*SPANDIAL_PORT"):
        bind_tcp("127.0.0.1", port)


@pytest.mark.parametrize("host", ["203.0.113.1", "no such host.invalid"])
def test_an_address_that_is_not_this_hosts_is_named(host: str) -> None:
    with pytest.raises(SpandialError, match=host):
        bind_tcp(host, 0)


def test_a_port_whose_last_connections_linger_can_be_taken(tcp: socket.socket) -> None:
    port = tcp.getsockname()[1]
    with socket.create_connection(("127.0.0.1", port)):
        accepted, _ = tcp.accept()
        accepted.close()
        tcp.close()
    bind_tcp("127.0.0.1", port).close()


@pytest.mark.skipif(not Path("/proc/sys/net/ipv6").exists(), reason="this kernel has no IPv6")
def test_an_address_with_colons_is_ipv6() -> None:
    with bind_tcp("::1", 0) as listener:
        assert listener.family == socket.AF_INET6


async def says_who_is_trusted(scope: Scope, receive: Receive, send: Send) -> None:
    """An application whose /stream never ends."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    trusted = b"trusted" if scope.get("spandial.trusted") else b"stranger"
    endless = scope["path"] == "/stream"
    await send({"type": "http.response.body", "body": trusted, "more_body": endless})
    if endless:
        await asyncio.Event().wait()


@pytest.mark.anyio
async def test_only_the_unix_socket_is_trusted_and_both_end_when_told(tmp_path: Path, tcp: socket.socket) -> None:
    path = tmp_path / "api.sock"
    stop = asyncio.Event()
    with bind_unix(path, NO_GROUP) as unix:
        serving = asyncio.create_task(serve(says_who_is_trusted, tcp, unix, stop))
        over_unix = httpx.AsyncHTTPTransport(uds=str(path))
        url = f"http://127.0.0.1:{tcp.getsockname()[1]}"
        async with httpx.AsyncClient(transport=over_unix) as local, httpx.AsyncClient() as remote:
            assert (await local.get("http://node/")).text == "trusted"
            assert (await remote.get(url)).text == "stranger"
            spoofed = {"X-Forwarded-For": "unix", "X-Forwarded-Proto": "https"}
            assert (await remote.get(url, headers=spoofed)).text == "stranger"
        stop.set()
        await asyncio.wait_for(serving, 10)


@pytest.mark.anyio
async def test_a_stream_does_not_keep_the_agent_from_ending(tmp_path: Path, tcp: socket.socket) -> None:
    stop = asyncio.Event()
    with bind_unix(tmp_path / "api.sock", NO_GROUP) as unix:
        serving = asyncio.create_task(serve(says_who_is_trusted, tcp, unix, stop))
        url = f"http://127.0.0.1:{tcp.getsockname()[1]}/stream"
        async with httpx.AsyncClient() as client, client.stream("GET", url) as answer:
            assert await anext(answer.aiter_raw()) == b"stranger"
            stop.set()
            await asyncio.wait_for(serving, 10)


@pytest.mark.anyio
async def test_nothing_runs_on_after_serving_has_ended(tmp_path: Path, tcp: socket.socket) -> None:
    stop, ended = asyncio.Event(), asyncio.Event()

    async def tidies_up(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await says_who_is_trusted(scope, receive, send)
        finally:
            await asyncio.sleep(0.05)
            ended.set()

    with bind_unix(tmp_path / "api.sock", NO_GROUP) as unix:
        serving = asyncio.create_task(serve(tidies_up, tcp, unix, stop))
        url = f"http://127.0.0.1:{tcp.getsockname()[1]}/stream"
        async with httpx.AsyncClient() as client, client.stream("GET", url):
            stop.set()
            await asyncio.wait_for(serving, 10)
            assert ended.is_set()


@pytest.mark.anyio
async def test_streams_are_asked_to_end_before_they_are_cut(tmp_path: Path, tcp: socket.socket) -> None:
    stop, asked = asyncio.Event(), asyncio.Event()

    async def until_asked(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first ", "more_body": True})
        await asked.wait()
        await send({"type": "http.response.body", "body": b"last"})

    with bind_unix(tmp_path / "api.sock", NO_GROUP) as unix:
        serving = asyncio.create_task(serve(until_asked, tcp, unix, stop, asked.set))
        async with httpx.AsyncClient() as client:
            answer = asyncio.create_task(client.get(f"http://127.0.0.1:{tcp.getsockname()[1]}/"))
            await asyncio.sleep(0.1)
            stop.set()
            assert (await answer).text == "first last"
            await asyncio.wait_for(serving, 10)
