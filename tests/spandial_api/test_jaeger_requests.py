"""GET /sampling?service= and /api/sampling."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from spandial.abi import EntryKind
from spandial.labels import Labels
from spandial_api import jaeger
from spandial_api import remote as remote_module
from spandial_api.node import Connection
from spandial_api.peers import PEER, Peer
from spandial_api.rules import RuleBook
from tests.spandial_api.fake_node import FakeNode

pytestmark = pytest.mark.anyio

OWN, OTHER, NOBODY = 1000, 64321, 4321  # FakeNode's processes, others', and who has none


def probabilistic(share: float) -> dict[str, Any]:
    return {"strategyType": "PROBABILISTIC", "probabilisticSampling": {"samplingRate": share}}


@pytest.mark.parametrize("path", ["/sampling", "/api/sampling"])
async def test_both_paths_answer_who_names_a_service(
    local: httpx.AsyncClient, remote: httpx.AsyncClient, path: str
) -> None:
    await local.put("/sampling", params={"rate": "30", "service": "shop"})
    answer = await remote.get(path, params={"service": "shop"})
    assert (answer.status_code, answer.json()) == (200, probabilistic(0.3))


@pytest.mark.parametrize("query", ["service=", "service=a&service=b", "service=" + "x" * 256])
@pytest.mark.parametrize("path", ["/sampling", "/api/sampling"])
async def test_it_is_one_service_or_none(remote: httpx.AsyncClient, path: str, query: str) -> None:
    answer = await remote.get(f"{path}?{query}")
    assert answer.status_code == 400
    assert "'service' must be given once" in answer.json()["detail"]


async def test_without_a_service_one_path_lists_the_rules(remote: httpx.AsyncClient) -> None:
    assert (await remote.get("/api/sampling")).status_code == 400
    assert (await remote.get("/sampling")).json() == {"revision": 0, "rules": []}


async def test_what_the_protocol_does_not_have_is_refused(remote: httpx.AsyncClient) -> None:
    answer = await remote.get("/api/sampling", params={"service": "shop", "rate": "30"})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["field"] == "rate"


async def test_who_can_say_its_env_is_told_apart(
    local: httpx.AsyncClient, remote: httpx.AsyncClient, node: FakeNode
) -> None:
    node.processes = [Labels("shop", env="gray"), Labels("shop", env="stable")]
    await local.put("/sampling", params={"rate": "1"})
    await local.put("/sampling", params={"rate": "100", "env": "gray"})
    answers = [await remote.get("/sampling", params={"service": "shop", **more}) for more in ({}, {"env": "gray"})]
    assert [answer.json() for answer in answers] == [probabilistic(0.01), probabilistic(1.0)]


async def test_the_only_process_of_a_service_is_known(
    local: httpx.AsyncClient, remote: httpx.AsyncClient, node: FakeNode
) -> None:
    node.processes = [Labels("shop", env="gray"), Labels("bank", env="stable")]
    await local.put("/sampling", params={"rate": "1"})
    await local.put("/sampling", params={"rate": "100", "env": "gray"})
    assert (await remote.get("/sampling", params={"service": "shop"})).json() == probabilistic(1.0)
    node.rates = {EntryKind.HTTP: 40.0}
    assert (await remote.get("/sampling", params={"service": "shop"})).json() == probabilistic(0.4)


async def test_where_processes_differ_the_connection_tells_which_one_asks(
    app: FastAPI, local: httpx.AsyncClient, node: FakeNode
) -> None:
    node.processes = [Labels("shop", env="gray"), Labels("shop", env="stable")]
    node.askers = {Connection("10.0.0.1", 4711, 5778): node.processes[0]}
    await local.put("/sampling", params={"rate": "1"})
    await local.put("/sampling", params={"rate": "100", "env": "gray"})
    for port, share in ((4711, 1.0), (4712, 0.01)):
        transport = httpx.ASGITransport(app, client=("10.0.0.1", port))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:5778") as client:
            assert (await client.get("/sampling", params={"service": "shop"})).json() == probabilistic(share)


async def test_of_instances_that_no_rule_tells_apart_any_says_what_is_in_force(
    local: httpx.AsyncClient, remote: httpx.AsyncClient, node: FakeNode
) -> None:
    node.processes = [Labels("shop", env="gray", others=(("service.instance.id", str(i)),)) for i in range(3)]
    await local.put("/sampling", params={"rate": "100", "env": "gray"})
    assert (await remote.get("/sampling", params={"service": "shop"})).json() == probabilistic(1.0)
    node.rates = {EntryKind.HTTP: 40.0}
    assert (await remote.get("/sampling", params={"service": "shop"})).json() == probabilistic(0.4)


async def test_a_strategy_is_made_once_for_each_change(
    local: httpx.AsyncClient, remote: httpx.AsyncClient, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Labels] = []

    def counted(book: RuleBook, labels: Labels, rate_now: jaeger.RateNow, default: float) -> jaeger.Strategy:
        made.append(labels)
        return jaeger.strategy_for(book, labels, rate_now, default)

    monkeypatch.setattr(remote_module, "strategy_for", counted)
    node.processes = [Labels("shop", env="gray")]
    for change, rate in enumerate((30, 40), 1):
        await local.put("/sampling", params={"rate": str(rate), "env": "gray"})
        for _ in range(20):
            answer = await remote.get("/sampling", params={"service": "shop"})
            assert answer.json()["probabilisticSampling"]["samplingRate"] == rate / 100
        assert len(made) == change
    node.rates = {EntryKind.HTTP: 2.0}
    answer = await remote.get("/sampling", params={"service": "shop"})
    assert answer.json()["probabilisticSampling"]["samplingRate"] == 0.02


def client_of_user(app: FastAPI, uid: int | None, port: int = 4711) -> httpx.AsyncClient:
    """A client whose user the kernel knows."""

    async def known(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, PEER: Peer("somebody", port, uid)}, receive, send)

    transport = httpx.ASGITransport(known, client=("10.0.0.1", port))
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:5778")


async def share_of(app: FastAPI, uid: int | None, port: int = 4711) -> float:
    async with client_of_user(app, uid, port) as client:
        answer = (await client.get("/sampling", params={"service": "shop"})).json()
    return float(answer["probabilisticSampling"]["samplingRate"])


async def test_who_asks_is_told_the_rate_of_his_own_user(
    app: FastAPI, local: httpx.AsyncClient, node: FakeNode
) -> None:
    await local.put("/sampling", params={"rate": "50"})
    node.processes, node.rates = [Labels("shop")], {EntryKind.HTTP: 40.0}
    node.of_others, node.rates_of = {OTHER: [Labels("shop")]}, {OTHER: 0.001}
    assert await share_of(app, OWN) == 0.4
    assert await share_of(app, OTHER) == 0.00001


async def test_who_has_no_processes_of_a_service_is_told_no_others_rates(
    app: FastAPI, local: httpx.AsyncClient, node: FakeNode
) -> None:
    await local.put("/sampling", params={"rate": "50"})
    node.of_others, node.rates_of = {OTHER: [Labels("shop")]}, {OTHER: 0.001}
    assert await share_of(app, NOBODY) == 0.5, "what the rules say"
    assert await share_of(app, 0) == 0.5, "root's, too: its processes may be unknown here"
    assert await share_of(app, None) == 0.00001, "who is not known is told what most have"


async def test_a_user_who_is_not_known_is_told_by_his_connection(
    app: FastAPI, local: httpx.AsyncClient, node: FakeNode
) -> None:
    await local.put("/sampling", params={"rate": "50"})
    node.processes, node.rates = [Labels("shop", env="gray")], {EntryKind.HTTP: 40.0}
    node.of_others, node.rates_of = {OTHER: [Labels("shop", env="blue")]}, {OTHER: 0.001}
    node.askers = {
        Connection("10.0.0.1", port, 5778): Labels("shop", env=env) for port, env in ((1, "gray"), (2, "blue"))
    }
    assert [await share_of(app, None, port) for port in (1, 2)] == [0.4, 0.00001]


async def test_what_other_users_call_their_processes_changes_no_labels(
    app: FastAPI, local: httpx.AsyncClient, node: FakeNode
) -> None:
    await local.put("/sampling", params={"rate": "1"})
    await local.put("/sampling", params={"rate": "100", "env": "gray"})
    node.processes = [Labels("shop", env="gray")]
    node.of_others = {OTHER: [Labels("shop", env=f"e{number}") for number in range(10)]}
    assert await share_of(app, OWN) == 1.0
    async with client_of_user(app, OWN) as client:
        records = (await client.post("/GetSamplingRules")).json()["SamplingRuleRecords"]
    assert [each["SamplingRule"]["FixedRate"] for each in records] == [1.0, 0.01]
    assert records[0]["SamplingRule"]["ServiceName"] == "shop"
