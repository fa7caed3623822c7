"""Jaeger's remote sampling over gRPC, asked by a client that protoc made."""

from __future__ import annotations

import importlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_tools import protoc

from tests.agent_process import PATIENCE_S, AgentProcess
from tests.certificates import self_signed

# What is public of jaeger-idl's proto/api_v2/sampling.proto: names, numbers and types.
PROTO = """
syntax = "proto3";
package jaeger.api_v2;

enum SamplingStrategyType { PROBABILISTIC = 0; RATE_LIMITING = 1; }
message ProbabilisticSamplingStrategy { double samplingRate = 1; }
message RateLimitingSamplingStrategy { int32 maxTracesPerSecond = 1; }
message OperationSamplingStrategy { string operation = 1; ProbabilisticSamplingStrategy probabilisticSampling = 2; }
message PerOperationSamplingStrategies {
  double defaultSamplingProbability = 1;
  double defaultLowerBoundTracesPerSecond = 2;
  repeated OperationSamplingStrategy perOperationStrategies = 3;
  double defaultUpperBoundTracesPerSecond = 4;
}
message SamplingStrategyResponse {
  SamplingStrategyType strategyType = 1;
  ProbabilisticSamplingStrategy probabilisticSampling = 2;
  RateLimitingSamplingStrategy rateLimitingSampling = 3;
  PerOperationSamplingStrategies operationSampling = 4;
}
message SamplingStrategyParameters { string serviceName = 1; }
service SamplingManager { rpc GetSamplingStrategy(SamplingStrategyParameters) returns (SamplingStrategyResponse); }
"""


class Client:
    """Asks for a service's strategy."""

    def __init__(self, channel: grpc.Channel, messages: Any, services: Any) -> None:
        self._ask = services.SamplingManagerStub(channel).GetSamplingStrategy
        self._messages = messages

    def strategy(self, service: str, **metadata: str) -> Any:
        asked = self._messages.SamplingStrategyParameters(serviceName=service)
        return self._ask(asked, timeout=PATIENCE_S, metadata=[*metadata.items()])


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    folder = tmp_path_factory.mktemp("generated")
    (folder / "jaeger_sampling.proto").write_text(PROTO)
    options = [f"-I{folder}", f"--python_out={folder}", f"--grpc_python_out={folder}"]
    assert protoc.main(["protoc", *options, str(folder / "jaeger_sampling.proto")]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield importlib.import_module("jaeger_sampling_pb2"), importlib.import_module("jaeger_sampling_pb2_grpc")


@pytest.fixture
def agent(share_agent: Callable[..., AgentProcess]) -> AgentProcess:
    return share_agent(SPANDIAL_TABLE="memfd", SPANDIAL_JAEGER_GRPC_PORT="0")


def port_of(agent: AgentProcess) -> int:
    """As its log says."""
    line = next(line for line in agent.log.read_text().splitlines() if "over gRPC" in line)
    return int(line.partition("port=")[2].split()[0])


@pytest.fixture
def client(agent: AgentProcess, generated: tuple[Any, Any]) -> Iterator[Client]:
    with grpc.insecure_channel(f"127.0.0.1:{port_of(agent)}") as channel:
        yield Client(channel, *generated)


def test_a_rate_is_a_probability_and_turns_with_the_dial(agent: AgentProcess, client: Client) -> None:
    for rate in (30, 0, 100, 0.1):
        agent.set(rate, service="shop")
        strategy = client.strategy("shop")
        assert strategy.strategyType == 0
        assert strategy.HasField("probabilisticSampling")
        assert strategy.probabilisticSampling.samplingRate == pytest.approx(rate / 100)
        assert not strategy.HasField("rateLimitingSampling")
        assert not strategy.HasField("operationSampling")


def test_a_throughput_is_a_limit_in_whole_numbers(agent: AgentProcess, client: Client) -> None:
    for target, limit in ((100, 100), (0.2, 1), (2.5, 3)):
        assert agent.http.put("/sampling", params={"service": "shop", "target": target}).is_success
        strategy = client.strategy("shop")
        assert strategy.strategyType == 1
        assert strategy.rateLimitingSampling.maxTracesPerSecond == limit
        assert not strategy.HasField("probabilisticSampling")


def test_rules_by_operation_come_with_the_default(agent: AgentProcess, client: Client) -> None:
    agent.set(1, service="shop")
    agent.set(100, service="shop", operation="GET /pay")
    strategy = client.strategy("shop")
    operations = strategy.operationSampling
    assert operations.defaultSamplingProbability == strategy.probabilisticSampling.samplingRate == 0.01
    shares = {each.operation: each.probabilisticSampling.samplingRate for each in operations.perOperationStrategies}
    assert shares == {"GET /pay": 1.0}


@pytest.mark.parametrize("service", ["", "x" * 256])
def test_without_a_service_it_is_an_invalid_argument(client: Client, service: str) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        client.strategy(service)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "serviceName must have 1 to 255 characters" in refused.value.details()


def test_both_transports_say_the_same(agent: AgentProcess, client: Client) -> None:
    agent.set(7, service="shop")
    agent.set(100, service="shop", operation="/pay")
    over_http = agent.get("/api/sampling?service=shop")["operationSampling"]["perOperationStrategies"]
    over_grpc = client.strategy("shop").operationSampling.perOperationStrategies
    assert [(each.operation, each.probabilisticSampling.samplingRate) for each in over_grpc] == [
        (each["operation"], each["probabilisticSampling"]["samplingRate"]) for each in over_http
    ]


def test_where_reading_needs_a_token_so_does_this(
    make_agent: Callable[..., AgentProcess], generated: tuple[Any, Any]
) -> None:
    settings = {"SPANDIAL_TABLE": "memfd", "SPANDIAL_JAEGER_GRPC_PORT": "0", "SPANDIAL_READ_WITHOUT_TOKEN": "off"}
    agent = make_agent(**settings)
    token = (agent.state_dir / "token").read_text().strip()
    with grpc.insecure_channel(f"127.0.0.1:{port_of(agent)}") as channel:
        client = Client(channel, *generated)
        with pytest.raises(grpc.RpcError) as refused:
            client.strategy("shop")
        assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
        assert client.strategy("shop", authorization=f"Bearer {token}").probabilisticSampling.samplingRate == 1.0


@pytest.mark.needs("openssl")
def test_it_has_the_tls_of_the_http_listener(
    make_agent: Callable[..., AgentProcess], generated: tuple[Any, Any], tmp_path: Path
) -> None:
    made = self_signed(tmp_path)
    tls = {"SPANDIAL_TLS_CERT": str(made.certificate), "SPANDIAL_TLS_KEY": str(made.key)}
    agent = make_agent(SPANDIAL_TABLE="memfd", SPANDIAL_JAEGER_GRPC_PORT="0", **tls)
    address = f"localhost:{port_of(agent)}"
    with grpc.secure_channel(address, grpc.ssl_channel_credentials(made.certificate.read_bytes())) as channel:
        assert Client(channel, *generated).strategy("shop").probabilisticSampling.samplingRate == 1.0
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as refused:
        Client(channel, *generated).strategy("shop")
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE


def test_a_port_that_is_taken_is_said_at_the_start(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        agent = AgentProcess(tmp_path, SPANDIAL_TABLE="memfd", SPANDIAL_JAEGER_GRPC_PORT=port)
        with pytest.raises(AssertionError, match="the agent ended"):
            agent.start()
    assert f"cannot listen on 127.0.0.1:{port} for Jaeger's gRPC" in agent.log.read_text()
