"""Jaeger's remote sampling over gRPC: its server alone, with TLS and without."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from spandial_agent.errors import SpandialError
from spandial_agent.serving.jaeger_grpc import SERVICE, messages, serving, tls
from spandial_api.auth import Refusal
from spandial_api.jaeger import Probabilistic, Strategy
from spandial_api.node import Connection
from tests.agent_process import PATIENCE_S
from tests.certificates import Certificate, self_signed

pytestmark = [pytest.mark.anyio, pytest.mark.needs("openssl")]

PARAMETERS, RESPONSE = messages()


async def half(service: str, connection: Connection | None) -> Strategy:
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
async def test_it_says_by_which_connection_it_is_asked(host: str) -> None:
    seen: list[Connection | None] = []

    async def strategy(service: str, connection: Connection | None) -> Strategy:
        seen.append(connection)
        return await half(service, connection)

    async with serving(host, 0, strategy) as port:
        async with grpc.aio.insecure_channel(f"[{host}]:{port}" if ":" in host else f"{host}:{port}") as channel:
            await ask(channel)
        [connection] = seen
        assert connection is not None
        assert (connection.address, connection.to_port) == (host, port)
        assert connection.port not in (0, port)


@pytest.mark.parametrize(
    ("status", "code"), [(401, "UNAUTHENTICATED"), (403, "PERMISSION_DENIED"), (429, "RESOURCE_EXHAUSTED")]
)
async def test_who_may_not_read_is_refused_with_the_reason(status: int, code: str) -> None:
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


@pytest.fixture
async def port(made: Certificate) -> AsyncIterator[int]:
    async with serving("127.0.0.1", 0, half, credentials=tls(made.certificate, made.key)) as bound:
        yield bound


async def test_it_answers_over_tls(port: int, made: Certificate) -> None:
    assert await share_at(port, trusting(made)) == 0.5


async def test_a_renewed_certificate_is_used_for_new_connections(port: int, made: Certificate) -> None:
    assert await share_at(port, trusting(made)) == 0.5
    old = trusting(made)
    self_signed(made.certificate.parent)
    assert await share_at(port, trusting(made)) == 0.5
    with pytest.raises(grpc.aio.AioRpcError):
        await share_at(port, old)


async def test_files_that_went_change_nothing(port: int, made: Certificate) -> None:
    trusts = trusting(made)
    made.key.unlink()
    assert await share_at(port, trusts) == 0.5


async def test_clients_can_be_made_to_show_theirs(made: Certificate, tmp_path: Path) -> None:
    (tmp_path / "client").mkdir()
    client = self_signed(tmp_path / "client")
    credentials = tls(made.certificate, made.key, client.certificate)
    async with serving("127.0.0.1", 0, half, credentials=credentials) as port:
        assert await share_at(port, trusting(made, client)) == 0.5
        for shown in (None, made):
            with pytest.raises(grpc.aio.AioRpcError):
                await share_at(port, trusting(made, shown))


def test_a_certificate_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpandialError, match=r"cannot read .*nothing\.pem"):
        tls(tmp_path / "nothing.pem")
