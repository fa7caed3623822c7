"""GET /sampling?service= and /api/sampling."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from spandial.abi import EntryKind
from spandial.labels import Labels
from spandial_api import jaeger
from spandial_api import remote as remote_module
from spandial_api.node import Connection
from spandial_api.rules import RuleBook
from tests.spandial_api.fake_node import FakeNode

pytestmark = pytest.mark.anyio


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
