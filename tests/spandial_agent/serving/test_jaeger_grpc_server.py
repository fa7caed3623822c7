"""Jaeger's remote sampling over gRPC: its server alone, with TLS and without."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from hpack import Encoder

from spandial_agent.serving import jaeger_grpc
from spandial_agent.serving.certificate import ServerCertificate
from spandial_agent.serving.connections import Connections
from spandial_agent.serving.http2 import PREFACE
from spandial_agent.serving.jaeger_grpc import SERVICE, messages, serving
from spandial_agent.serving.peers import Peers
from spandial_api.auth import Refusal
from spandial_api.jaeger import Probabilistic, Strategy
from spandial_api.node import Connection
from spandial_api.peers import Peer
from tests.agent_process import PATIENCE_S, eventually
from tests.certificates import Certificate, self_signed
from tests.spandial_agent.serving.frames import frame

pytestmark = [pytest.mark.anyio, pytest.mark.needs("openssl")]

PARAMETERS, RESPONSE = messages()


async def half(service: str, connection: Connection, uid: int | None) -> Strategy:
    return Strategy(strategy_type="PROBABILISTIC", probabilistic_sampling=Probabilistic(sampling_rate=0.5))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def made(tmp_path: Path) -> Certificate:
    return self_signed(tmp_path)


async def ask(channel: grpc.aio.Channel, metadata: Sequence[tuple[str, str]] = ()) -> float:
    call = channel.unary_unary(f"/{SERVICE}/GetSamplingStrategy", PARAMETERS.SerializeToString, RESPONSE.FromString)
    answer: Any = await call(PARAMETERS(serviceName="shop"), timeout=PATIENCE_S, metadata=metadata)
    return float(answer.probabilisticSampling.samplingRate)


async def share_at(port: int, credentials: grpc.ChannelCredentials) -> float:
    """What a new connection is answered."""
    # A channel with the same arguments would be the same connection.
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(f"localhost:{port}", credentials, options) as channel:
        return await ask(channel)


def trusting(made: Certificate, shown: Certificate | None = None) -> grpc.ChannelCredentials:
    """A client that trusts one certificate, and shows another."""
    own = (shown.key.read_bytes(), shown.certificate.read_bytes()) if shown else (None, None)
    return grpc.ssl_channel_credentials(made.certificate.read_bytes(), *own)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_it_says_by_which_connection_it_is_asked_and_whose(host: str, tmp_path: Path) -> None:
    seen: list[Connection] = []

    async def strategy(service: str, connection: Connection, uid: int | None) -> Strategy:
        seen.append(connection)
        assert uid == os.geteuid()
        return await half(service, connection, uid)

    async with serving(host, 0, strategy) as port:
        async with grpc.aio.insecure_channel(f"[{host}]:{port}" if ":" in host else f"{host}:{port}") as channel:
            await ask(channel)
        [connection] = seen
        assert (connection.address, connection.to_port, connection.to_address) == (host, port, host)
        assert connection.port not in (0, port)
        assert connection.serial


@pytest.mark.parametrize(
    ("status", "code"), [(401, "UNAUTHENTICATED"), (403, "PERMISSION_DENIED"), (429, "RESOURCE_EXHAUSTED")]
)
async def test_who_may_not_read_is_refused_with_the_reason(status: int, code: str, tmp_path: Path) -> None:
    seen: list[tuple[str, str]] = []

    def check_reader(authorization: str, peer: str) -> None:
        seen.append((authorization, peer))
        raise Refusal(status, "a sentence", "a reason")

    serves = serving("127.0.0.1", 0, half, check_reader)
    async with serves as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await ask(channel, [("authorization", "Bearer abc")])
    assert (refused.value.code(), refused.value.details()) == (grpc.StatusCode[code], "a sentence")
    assert seen == [("Bearer abc", "127.0.0.1")]


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_a_client_may_compress(compression: grpc.Compression) -> None:
    seen: list[str] = []

    async def strategy(service: str, connection: Connection, uid: int | None) -> Strategy:
        seen.append(service)
        return await half(service, connection, uid)

    async with serving("127.0.0.1", 0, strategy) as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(f"/{SERVICE}/GetSamplingStrategy", PARAMETERS.SerializeToString, RESPONSE.FromString)
        await call(PARAMETERS(serviceName="x" * 200), timeout=PATIENCE_S, compression=compression)
    assert seen == ["x" * 200]


async def test_what_is_no_question_is_refused() -> None:
    async with serving("127.0.0.1", 0, half) as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        for path, asked, code in (
            ("GetSamplingStrategy", b"\xff", grpc.StatusCode.INTERNAL),
            ("SetSamplingStrategy", b"", grpc.StatusCode.UNIMPLEMENTED),
            ("GetSamplingStrategy", bytes(17 << 10), grpc.StatusCode.RESOURCE_EXHAUSTED),
            ("GetSamplingStrategy", bytes(1 << 20), grpc.StatusCode.RESOURCE_EXHAUSTED),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await channel.unary_unary(f"/{SERVICE}/{path}")(asked, timeout=PATIENCE_S)
            assert refused.value.code() == code


@pytest.fixture
def certificate(made: Certificate) -> ServerCertificate:
    return ServerCertificate(made.certificate, made.key)


@pytest.fixture
async def port(certificate: ServerCertificate, tmp_path: Path) -> AsyncIterator[int]:
    async with serving("127.0.0.1", 0, half, tls=certificate.context_for("h2")) as bound:
        yield bound


async def test_it_answers_over_tls(port: int, made: Certificate) -> None:
    assert await share_at(port, trusting(made)) == 0.5


async def test_a_renewed_certificate_is_used_for_new_connections(
    port: int, made: Certificate, certificate: ServerCertificate
) -> None:
    assert await share_at(port, trusting(made)) == 0.5
    old = trusting(made)
    self_signed(made.certificate.parent)
    certificate.refresh()
    assert await share_at(port, trusting(made)) == 0.5
    with pytest.raises(grpc.aio.AioRpcError):
        await share_at(port, old)


async def test_clients_can_be_made_to_show_theirs(made: Certificate, tmp_path: Path) -> None:
    (tmp_path / "client").mkdir()
    client = self_signed(tmp_path / "client")
    tls = ServerCertificate(made.certificate, made.key, client.certificate).context_for("h2")
    async with serving("127.0.0.1", 0, half, tls=tls) as port:
        assert await share_at(port, trusting(made, client)) == 0.5
        for shown in (None, made):
            with pytest.raises(grpc.aio.AioRpcError):
                await share_at(port, trusting(made, shown))


# What one peer can take.

REQUEST = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", f"/{SERVICE}/GetSamplingStrategy"),
    (":authority", "127.0.0.1"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
]


@pytest.fixture
def refused() -> Counter[str]:
    return Counter()


@pytest.fixture
async def plain(tmp_path: Path, refused: Counter[str]) -> AsyncIterator[int]:
    async with serving("127.0.0.1", 0, half, host_names=["node.example"], refused=refused) as bound:
        yield bound


def head(stream: int, fields: Sequence[tuple[str, str]] = REQUEST) -> bytes:
    """A request that has begun, and whose message does not come."""
    return frame(1, 4, stream, Encoder().encode(fields))


async def connected(port: int, *sent: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(PREFACE + frame(4, 0, 0) + b"".join(sent))
    return reader, writer


async def asked_by(port: int, peer: str, monkeypatch: pytest.MonkeyPatch) -> float:
    """What an honest client of another peer is answered. It tries again, as gRPC's clients do."""
    monkeypatch.setattr(Peers, "at", lambda self, client, server: Peer(peer, 1 << 40))
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        return await ask(channel)


async def until(condition: Callable[[], Any], what: str) -> None:
    await asyncio.to_thread(eventually, condition, what)


async def test_half_requests_on_many_connections_keep_no_other_peer_out(
    plain: int, refused: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    half_done = b"".join(head(stream) for stream in range(1, 200, 2))
    flood = [await connected(plain, half_done) for _ in range(600)]
    await until(lambda: refused["connections"] >= 600 - 32, "of one peer there are only so many connections")
    for attempt in range(20):
        assert await asked_by(plain, f"honest {attempt}", monkeypatch) == 0.5
    for _, writer in flood:
        writer.close()


_PYTHON = os.path.realpath(sys.executable)  # others may not reach the virtual environment
_FLOOD = """import socket, sys
sent, connections = bytes.fromhex(sys.argv[2]) + bytes.fromhex(sys.argv[3]) * 4000, []
for _ in range(600):
    connections.append(socket.create_connection(("127.0.0.1", int(sys.argv[1]))))
    try:
        connections[-1].sendall(sent)
    except OSError:
        pass
print("sent", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be anybody")
@pytest.mark.parametrize("often", [b"", frame(6, 0, 0, bytes(8)), frame(4, 0, 0)], ids=["requests", "ping", "settings"])
async def test_another_users_flood_keeps_nobody_out(plain: int, refused: Counter[str], often: bytes) -> None:
    half_done = PREFACE + frame(4, 0, 0) + b"".join(head(stream) for stream in range(1, 200, 2))
    flooding = await asyncio.create_subprocess_exec(
        *(_PYTHON, "-I", "-c", _FLOOD, str(plain), half_done.hex(), often.hex()),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        user=64321,
        cwd="/",
        env={},
    )
    options = [("grpc.use_local_subchannel_pool", 1)]
    try:
        assert flooding.stdout is not None
        assert await asyncio.wait_for(flooding.stdout.readline(), PATIENCE_S) == b"sent\n"
        for _ in range(20):
            async with grpc.aio.insecure_channel(f"127.0.0.1:{plain}", options) as channel:
                assert await ask(channel) == 0.5
        await until(lambda: refused.total() >= 600 - 32, "of one user there are only so many connections")
    finally:
        flooding.kill()
        await flooding.wait()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaeger_grpc, "Connections", functools.partial(Connections, patience_s=1.0))


@pytest.mark.usefixtures("impatient")
async def test_a_message_that_does_not_come_is_waited_for_only_so_long(plain: int, refused: Counter[str]) -> None:
    reader, writer = await connected(plain, head(1))
    other, other_writer = await connected(plain, head(1)[:20])
    silent, silent_writer = await asyncio.open_connection("127.0.0.1", plain)
    await until(lambda: (refused["body"], refused["head"]) == (1, 2), "all three are ended")
    for each in (reader, other, silent):
        with contextlib.suppress(ConnectionError):
            while await asyncio.wait_for(each.read(4096), PATIENCE_S):
                pass
    for each_writer in (writer, other_writer, silent_writer):
        each_writer.close()


async def test_who_begins_and_resets_without_an_end_makes_nobody_wait(
    plain: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = await connected(plain)
    encoder, going_on = Encoder(), True

    async def reset_rapidly() -> None:
        with contextlib.suppress(ConnectionError):
            for stream in range(1, 1 << 30, 2):
                if not going_on:
                    return
                writer.write(frame(1, 5, stream, encoder.encode(REQUEST)) + frame(3, 0, stream, bytes(4)))
                await writer.drain()
                await asyncio.sleep(0)  # the agent is on this loop, too

    resetting, reading = asyncio.create_task(reset_rapidly()), asyncio.create_task(reader.read(-1))
    for attempt in range(20):
        assert await asked_by(plain, f"honest {attempt}", monkeypatch) == 0.5
    going_on = False
    await resetting
    reading.cancel()
    writer.close()


async def test_to_what_is_no_http2_nothing_is_said(plain: int, refused: Counter[str]) -> None:
    """A browser's page sends such things, whatever name it has for this host."""
    reader, writer = await asyncio.open_connection("127.0.0.1", plain)
    writer.write(b"POST /jaeger.api_v2.SamplingManager/GetSamplingStrategy HTTP/1.1\r\nHost: evil.example\r\n\r\n")
    with contextlib.suppress(ConnectionError):
        assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b""
    writer.close()
    await until(lambda: refused["protocol"] == 1, "it is counted")


@pytest.mark.parametrize(("authority", "allowed"), [("evil.example", False), ("node.example:1", True)])
async def test_it_is_asked_by_its_own_names_alone(
    plain: int, refused: Counter[str], authority: str, allowed: bool
) -> None:
    options = [("grpc.default_authority", authority), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{plain}", options) as channel:
        if allowed:
            assert await ask(channel) == 0.5
            return
        with pytest.raises(grpc.aio.AioRpcError) as answer:
            await ask(channel)
    assert answer.value.code() == grpc.StatusCode.PERMISSION_DENIED
    assert "SPANDIAL_HOST_NAMES" in str(answer.value.details())
    assert refused["host"] == 1
