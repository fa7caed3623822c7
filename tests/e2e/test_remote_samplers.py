"""SDKs without the hook obey the dial by samplers of their own: OpenTelemetry JS with Jaeger's and with X-Ray's."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import pytest

from tests.agent_process import AgentProcess, eventually
from tests.e2e.samplers import NODE_MODULES, SamplerClient

pytestmark = [pytest.mark.e2e, pytest.mark.needs("node")]

SPANS = 2000


@pytest.fixture
def agent(share_agent: Callable[..., AgentProcess]) -> AgentProcess:
    """Every question of X-Ray's clients comes a second after the one before."""
    if not NODE_MODULES.exists():
        required = os.environ.get("SPANDIAL_REQUIRE_KERNEL") == "1"
        (pytest.fail if required else pytest.skip)("OpenTelemetry JS is not installed: run deploy/setup")
    return share_agent(SPANDIAL_TABLE="memfd", SPANDIAL_XRAY_INTERVAL_SECONDS="1")


@pytest.fixture
def make_client(agent: AgentProcess) -> Iterator[Callable[..., SamplerClient]]:
    clients: list[SamplerClient] = []

    def make(protocol: str, service: str, **environ: str) -> SamplerClient:
        clients.append(SamplerClient(protocol, agent.url, service, **environ))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.mark.parametrize("protocol", ["jaeger", "xray"])
def test_it_keeps_what_the_dial_says_and_turns_with_it(
    agent: AgentProcess, make_client: Callable[..., SamplerClient], protocol: str
) -> None:
    agent.set(0)
    agent.set(100, service="shop")
    shop, bank = make_client(protocol, "shop"), make_client(protocol, "bank")
    eventually(lambda: shop.kept(SPANS) == SPANS, "the shop keeps all")
    eventually(lambda: bank.kept(SPANS) == 0, "the bank keeps none")
    agent.set(0, service="shop")
    agent.set(100)
    eventually(lambda: shop.kept(SPANS) == 0, "the shop keeps none any more")
    eventually(lambda: bank.kept(SPANS) == SPANS, "the bank keeps all")
    agent.set(30, service="shop")
    # Six standard deviations.
    eventually(lambda: 477 < shop.kept(SPANS) < 723, "the shop keeps 30 %")


@pytest.mark.parametrize("protocol", ["jaeger", "xray"])
def test_a_rule_for_an_env_is_for_the_processes_that_are_known_to_be_there(
    agent: AgentProcess, make_client: Callable[..., SamplerClient], protocol: str
) -> None:
    agent.set(0)
    agent.set(100, env="gray")
    of_gray = {"OTEL_SERVICE_NAME": "shop", "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=gray"}
    shop = make_client(protocol, "shop", **of_gray)
    bank = make_client(protocol, "bank", OTEL_SERVICE_NAME="bank")
    eventually(lambda: agent.target(shop.pid) and agent.target(bank.pid), "the agent knows both")
    eventually(lambda: shop.kept(SPANS) == SPANS, "the shop is gray")
    eventually(lambda: bank.kept(SPANS) == 0, "the bank is not")


@pytest.mark.parametrize("protocol", ["jaeger", "xray"])
def test_gray_and_stable_of_one_name_are_told_apart_by_their_connections(
    agent: AgentProcess, make_client: Callable[..., SamplerClient], protocol: str
) -> None:
    agent.set(0)
    agent.set(100, env="gray")
    attributes = "deployment.environment.name="
    gray, stable = (
        make_client(protocol, "shop", OTEL_SERVICE_NAME="shop", OTEL_RESOURCE_ATTRIBUTES=attributes + env)
        for env in ("gray", "stable")
    )
    eventually(lambda: agent.target(gray.pid) and agent.target(stable.pid), "the agent knows both")
    eventually(lambda: gray.kept(SPANS) == SPANS, "gray keeps all")
    eventually(lambda: stable.kept(SPANS) == 0, "stable keeps none")
    agent.set(100)
    agent.set(0, env="gray")
    eventually(lambda: gray.kept(SPANS) == 0, "gray keeps none any more")
    eventually(lambda: stable.kept(SPANS) == SPANS, "stable keeps all")


def request(method: str, path: str) -> dict[str, str]:
    return {"http.request.method": method, "url.path": path}


def test_jaegers_client_goes_by_span_names(agent: AgentProcess, make_client: Callable[..., SamplerClient]) -> None:
    agent.set(0)
    agent.set(100, service="shop", operation="GET /pay")
    agent.set(100, service="shop", operation="/pkg.Shop/Buy")
    agent.set(0, service="shop", operation="nightly report")
    shop = make_client("jaeger", "shop")
    eventually(lambda: shop.kept(SPANS, "GET /pay") == SPANS, "payments are kept")
    assert shop.kept(SPANS, "pkg.Shop/Buy") == SPANS
    assert shop.kept(SPANS, "POST /pay") == 0
    agent.set(100)
    eventually(lambda: shop.kept(SPANS, "POST /pay") == SPANS, "the default is turned")
    assert shop.kept(SPANS, "nightly report") == 0


def test_xrays_client_goes_by_methods_and_paths(agent: AgentProcess, make_client: Callable[..., SamplerClient]) -> None:
    agent.set(0)
    agent.set(100, service="shop", operation="GET /pay*")
    agent.set(100, service="shop", protocol="grpc")
    shop = make_client("xray", "shop")
    eventually(lambda: shop.kept(SPANS, attributes=request("GET", "/payments")) == SPANS, "payments are kept")
    assert shop.kept(SPANS, attributes=request("POST", "/payments")) == 0
    assert shop.kept(SPANS, attributes=request("GET", "/")) == 0
    assert shop.kept(SPANS, attributes={"rpc.system": "grpc"}) == SPANS


def test_xrays_clients_share_a_throughput(agent: AgentProcess, make_client: Callable[..., SamplerClient]) -> None:
    assert agent.http.put("/sampling", params={"service": "shop", "target": 40}).is_success
    clients = [make_client("xray", "shop"), make_client("xray", "shop")]

    def shared() -> bool:
        """What each keeps a second, while more is asked for than it may keep."""
        begin, kept = time.monotonic(), [0, 0]
        while (elapsed := time.monotonic() - begin) < 1:
            kept = [sum(pair) for pair in zip(kept, (client.kept(100) for client in clients))]
        return all(10 < count / elapsed < 25 for count in kept)

    eventually(shared, "each keeps its half")
