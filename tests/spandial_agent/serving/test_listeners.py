"""The HTTP listeners."""

from __future__ import annotations

import asyncio
import grp
import os
import socket
import ssl
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from spandial_agent.errors import SpandialError
from spandial_agent.serving.binding import bind_tcp, bind_unix, is_loopback
from spandial_agent.serving.certificate import ServerCertificate
from spandial_agent.serving.listeners import serve
from tests.certificates import Certificate, self_signed

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


def test_an_answer_does_not_wait_for_the_clients_acknowledgement(tcp: socket.socket) -> None:
    async def options() -> list[int]:
        found: asyncio.Queue[int] = asyncio.Queue()

        def take(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            found.put_nowait(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        async with await asyncio.start_server(take, sock=tcp.dup()):
            _, writer = await asyncio.open_connection(*tcp.getsockname())
            try:
                return [await asyncio.wait_for(found.get(), 10)]
            finally:
                writer.close()

    assert asyncio.run(options()) == [1]


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


@pytest.mark.parametrize("host", ["0.0.0.0", "", "::"])
def test_an_address_that_others_reach_needs_tls_and_is_told_what_to_set(host: str) -> None:
    message = r"^SPANDIAL_HOST=.* SPANDIAL_TLS_CERT and SPANDIAL_TLS_KEY .*SPANDIAL_HOST=127\.0\.0\.1$"
    with pytest.raises(SpandialError, match=message):
        bind_tcp(host, 0)
    with bind_tcp(host, 0, tls=True) as listener:
        assert not is_loopback(listener)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "::1"])
def test_this_hosts_own_addresses_do_not(host: str) -> None:
    with bind_tcp(host, 0) as listener:
        assert is_loopback(listener)


def test_a_refused_address_is_not_kept(tcp: socket.socket) -> None:
    port = tcp.getsockname()[1]
    tcp.close()
    with pytest.raises(SpandialError, match="SPANDIAL_TLS_CERT"):
        bind_tcp("0.0.0.0", port)
    bind_tcp("127.0.0.1", port).close()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Certificate]:
    return {name: self_signed(tmp_path_factory.mktemp(name)) for name in ("server", "client", "stranger")}


def client_context(server: Certificate, own: Certificate | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(server.certificate))
    if own is not None:
        context.load_cert_chain(own.certificate, own.key)
    return context


async def says_who_is_trusted(scope: Scope, receive: Receive, send: Send) -> None:
    """An application whose /stream never ends."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    peer = scope.get("spandial.peer")
    trusted = peer.name.encode() if peer else b"stranger"
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
            assert (await local.get("http://node/")).text == f"uid {os.geteuid()}"
            assert (await remote.get(url)).text == "stranger"
            spoofed = {"X-Forwarded-For": "unix", "X-Forwarded-Proto": "https"}
            assert (await remote.get(url, headers=spoofed)).text == "stranger"
        stop.set()
        await asyncio.wait_for(serving, 10)


@pytest.mark.anyio
async def test_with_tls_there_is_nothing_else_on_tcp(
    tmp_path: Path, tcp: socket.socket, certificates: dict[str, Certificate]
) -> None:
    server, stop = certificates["server"], asyncio.Event()
    port = tcp.getsockname()[1]
    with bind_unix(tmp_path / "api.sock", NO_GROUP) as unix:
        tls = ServerCertificate(server.certificate, server.key).context
        serving = asyncio.create_task(serve(says_who_is_trusted, tcp, unix, stop, tls=tls))
        async with httpx.AsyncClient(verify=client_context(server)) as client:
            assert (await client.get(f"https://127.0.0.1:{port}/")).text == "stranger"
            with pytest.raises(httpx.TransportError):
                await client.get(f"http://127.0.0.1:{port}/")
        async with httpx.AsyncClient(verify=client_context(certificates["stranger"])) as other:
            with pytest.raises(httpx.ConnectError):
                await other.get(f"https://127.0.0.1:{port}/")
        async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(tmp_path / "api.sock"))) as local:
            assert (await local.get("http://node/")).text == f"uid {os.geteuid()}"
        stop.set()
        await asyncio.wait_for(serving, 10)


@pytest.mark.anyio
async def test_with_mtls_only_clients_with_a_certificate_connect(
    tmp_path: Path, tcp: socket.socket, certificates: dict[str, Certificate]
) -> None:
    server, stop = certificates["server"], asyncio.Event()
    url = f"https://127.0.0.1:{tcp.getsockname()[1]}/"
    with bind_unix(tmp_path / "api.sock", NO_GROUP) as unix:
        own = certificates["client"]
        tls = ServerCertificate(server.certificate, server.key, own.certificate).context
        serving = asyncio.create_task(serve(says_who_is_trusted, tcp, unix, stop, tls=tls))
        for wrong in (None, certificates["stranger"]):
            async with httpx.AsyncClient(verify=client_context(server, wrong)) as client:
                with pytest.raises(httpx.TransportError):
                    await client.get(url)
        async with httpx.AsyncClient(verify=client_context(server, own)) as client:
            assert (await client.get(url)).text == "stranger"  # a certificate is no token
        stop.set()
        await asyncio.wait_for(serving, 10)


_PYTHON = os.path.realpath(sys.executable)
_AS_SOMEBODY = """
import socket, sys
with socket.socket(socket.AF_UNIX) as client:
    client.connect(sys.argv[1])
    client.sendall(b"GET / HTTP/1.1\\r\\nHost: node\\r\\nConnection: close\\r\\n\\r\\n")
    print(b"".join(iter(lambda: client.recv(4096), b"")).decode())
"""


@pytest.mark.anyio
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be anybody")
async def test_the_application_is_told_who_has_connected_as_the_kernel_says(tcp: socket.socket) -> None:
    stop = asyncio.Event()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "api.sock"
        os.chmod(folder, 0o755)
        with bind_unix(path, NO_GROUP) as unix:
            path.chmod(0o666)
            serving = asyncio.create_task(serve(says_who_is_trusted, tcp, unix, stop))
            for uid in (0, 4321, 2**31 + 5):
                process = await asyncio.create_subprocess_exec(
                    _PYTHON,
                    "-I",
                    "-c",
                    _AS_SOMEBODY,
                    str(path),
                    stdout=subprocess.PIPE,
                    user=uid,
                    cwd="/",
                )
                printed, _ = await process.communicate()
                assert f"uid {uid}" in printed.decode().splitlines()
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
