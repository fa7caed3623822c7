"""POST /GetSamplingRules and /SamplingTargets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st

from spandial.labels import Labels
from spandial_api import remote as remote_module
from spandial_api import xray
from spandial_api.app import build_app
from spandial_api.auth import Access
from spandial_api.control import Control
from spandial_api.node import Asker, Connection
from spandial_api.remote import RemoteSampling
from spandial_api.rules import RuleBook
from spandial_api.store import Store
from spandial_api.token_file import TokenFile
from tests.spandial_api.conftest import client_of
from tests.spandial_api.fake_node import FakeNode

pytestmark = pytest.mark.anyio


def document(rule: str = "Default", client: str = "a" * 24, requests: int = 1) -> dict[str, Any]:
    counts = {"RequestCount": requests, "SampledCount": 0, "BorrowCount": 0}
    return {"RuleName": rule, "ClientID": client, "Timestamp": 1.7e9, **counts}


def statistics(*documents: dict[str, Any]) -> dict[str, Any]:
    return {"SamplingStatisticsDocuments": documents}


async def rules_of(client: httpx.AsyncClient) -> dict[str, dict[str, Any]]:
    answer = await client.post("/GetSamplingRules")
    assert answer.status_code == 200, answer.text
    records = [record["SamplingRule"] for record in answer.json()["SamplingRuleRecords"]]
    return {record["RuleName"]: record for record in records}


async def targets_of(client: httpx.AsyncClient, *documents: dict[str, Any]) -> dict[str, Any]:
    answer = await client.post("/SamplingTargets", json=statistics(*documents))
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def test_nobody_needs_a_token_to_ask(local: httpx.AsyncClient, remote: httpx.AsyncClient) -> None:
    await local.put("/sampling", params={"rate": "30", "service": "shop"})
    assert (await rules_of(remote))["service=shop"] == {
        "RuleName": "service=shop",
        "RuleARN": "",
        "Priority": 1,
        "FixedRate": 0.3,
        "ReservoirSize": 0,
        "ServiceName": "shop",
        "ServiceType": "*",
        "Host": "*",
        "HTTPMethod": "*",
        "URLPath": "*",
        "ResourceARN": "*",
        "Attributes": {},
        "Version": 1,
    }


@pytest.mark.parametrize("body", [b"", b"{}", b'{"NextToken":null}'])
async def test_there_is_nothing_to_choose(remote: httpx.AsyncClient, body: bytes) -> None:
    assert (await remote.post("/GetSamplingRules", content=body)).status_code == 200


async def test_a_target_is_told_at_once_and_newer_rules_are_announced(
    app: FastAPI, local: httpx.AsyncClient, remote: httpx.AsyncClient
) -> None:
    now = 1000.0
    app.state.control.now = lambda: now
    await local.put("/sampling", params={"rate": "30", "service": "shop"})
    first = await targets_of(remote, document("service=shop"), document())
    shop, rest = first["SamplingTargetDocuments"]
    assert shop == {
        "RuleName": "service=shop",
        "FixedRate": 0.3,
        "ReservoirQuota": 0,
        "ReservoirQuotaTTL": now + 30,
        "Interval": 10,
    }
    assert rest["RuleName"] == "Default"
    assert first["LastRuleModification"] == 1000
    now = 1005.5
    assert (await targets_of(remote, document()))["LastRuleModification"] == 1000
    await local.put("/sampling", params={"rate": "40", "service": "shop"})
    second = await targets_of(remote, document("service=shop"))
    assert second["SamplingTargetDocuments"][0]["FixedRate"] == 0.4
    assert second["LastRuleModification"] == 1006


async def test_processes_that_come_make_newer_rules(
    app: FastAPI, local: httpx.AsyncClient, remote: httpx.AsyncClient, node: FakeNode
) -> None:
    now = 1000.0
    app.state.control.now = lambda: now
    await local.put("/sampling", params={"rate": "100", "env": "gray"})
    assert list(await rules_of(remote)) == ["Default"]
    node.processes = [Labels("shop", env="gray")]
    now = 1002.0
    rules = await rules_of(remote)
    assert [each["ServiceName"] for each in rules.values()] == ["shop", "*"]
    assert (await targets_of(remote))["LastRuleModification"] == 1002


async def test_where_processes_differ_the_connection_tells_which_one_asks(
    app: FastAPI, local: httpx.AsyncClient, node: FakeNode
) -> None:
    instances = [(("service.instance.id", str(number)),) for number in range(3)]
    node.processes = [Labels("shop", env="gray", others=instances[0]), Labels("shop", env="gray", others=instances[1])]
    node.processes.append(Labels("shop", env="stable", others=instances[2]))
    node.askers = {Connection("10.0.0.1", port, 5778): labels for port, labels in enumerate(node.processes, 1)}
    await local.put("/sampling", params={"rate": "1"})
    await local.put("/sampling", params={"rate": "100", "env": "gray"})
    found = []
    for port in (1, 2, 3, 4):
        transport = httpx.ASGITransport(app, client=("10.0.0.1", port))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:5778") as client:
            rules = await rules_of(client)
            told = await targets_of(client, *map(document, rules))
            assert len(told["SamplingTargetDocuments"]) == len(rules)
            found.append([(rule["ServiceName"], rule["FixedRate"]) for rule in rules.values()])
    default = ("*", 0.01)
    assert found == [[("shop", 1.0), default], [("shop", 1.0), default], [default], [default]]


OWN, OTHER, NOBODY = 1000, 64321, 4321  # FakeNode's processes, others', and who has none


async def rates_of(remote: RemoteSampling, uid: int, port: int = 1) -> list[float]:
    connection = Connection("127.0.0.1", port, 5778, "127.0.0.1", port, f"uid {uid}")
    return [rule.rate for rule in (await remote.xray(connection, uid)).rules.values()]


@pytest.fixture
async def gray(local: httpx.AsyncClient, node: FakeNode) -> FakeNode:
    """Each user has processes of one service that differ, and a rule tells them apart."""
    await local.put("/sampling", params={"rate": "1"})
    await local.put("/sampling", params={"rate": "100", "env": "gray"})
    node.processes = [Labels("shop", env="gray"), Labels("shop", env="stable")]
    node.of_others = {OTHER: [Labels("evil", env=env) for env in ("gray", "blue")]}
    return node


async def test_nobody_waits_for_a_look_at_another_ones_processes(
    app: FastAPI, gray: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, go_on = asyncio.Event(), asyncio.Event()

    async def slow(services: tuple[str, ...], connection: Connection, uid: int | None = None) -> Asker | None:
        assert uid is not None
        if uid == OTHER:
            looked.set()
            await go_on.wait()
        return Asker(Labels(services[0], env="gray"), uid)

    monkeypatch.setattr(gray, "asker", slow)
    remote: RemoteSampling = app.state.remote
    flood = [asyncio.create_task(rates_of(remote, OTHER, port)) for port in range(60)]
    await asyncio.wait_for(looked.wait(), 30)
    assert await asyncio.wait_for(rates_of(remote, OWN), 30) == [1.0, 0.01]
    go_on.set()
    assert await asyncio.gather(*flood) == [[1.0, 0.01]] * 60


async def test_of_a_user_without_processes_nobodys_are_looked_at(
    app: FastAPI, gray: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gray, "asker", None)
    assert await rates_of(app.state.remote, NOBODY) == [0.01]


async def test_answers_are_made_for_each_peer_in_turn_and_one_peers_push_out_its_own(
    app: FastAPI, gray: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def counted(book: RuleBook, known: dict[str, Labels], default: float) -> list[xray.XRayRule]:
        made.append("shop" if "shop" in known and known["shop"].env else known["evil"].version)
        return xray.xray_rules(book, known, default)

    async def asker(services: tuple[str, ...], connection: Connection, uid: int | None = None) -> Asker | None:
        assert uid is not None
        version = f"v{connection.port}" if uid == OTHER else ""
        return Asker(Labels(services[0], version, "gray"), uid)

    monkeypatch.setattr(remote_module, "xray_rules", counted)
    monkeypatch.setattr(remote_module, "selected_by", lambda rules: frozenset({"env", "version"}))
    monkeypatch.setattr(gray, "asker", asker)
    remote: RemoteSampling = app.state.remote
    flood = [asyncio.create_task(rates_of(remote, OTHER, port)) for port in range(1, 101)]
    await asyncio.sleep(0)
    assert await rates_of(remote, OWN) == [1.0, 0.01]
    assert "shop" in made[:3], "after the one at hand, and one more"
    await asyncio.gather(*flood)
    assert len(made) == 101
    await rates_of(remote, OWN)
    assert made.count("shop") == 1, "it is remembered, however many others were made"


async def test_a_throughput_is_shared(local: httpx.AsyncClient, remote: httpx.AsyncClient) -> None:
    await local.put("/sampling", params={"target": "10", "service": "shop"})
    assert (await rules_of(remote))["service=shop"]["ReservoirSize"] == 10
    for _ in range(2):
        answers = [await targets_of(remote, document("service=shop", client)) for client in ("a", "b", "c")]
    quotas = [answer["SamplingTargetDocuments"][0]["ReservoirQuota"] for answer in answers]
    assert sorted(quotas) == [3, 3, 4]


async def test_a_reader_takes_no_honest_clients_reservoir(
    app: FastAPI, local: httpx.AsyncClient, remote: httpx.AsyncClient
) -> None:
    await local.put("/sampling", params={"target": "1000", "service": "shop"})
    made_up = [document("service=shop", f"made-up-{number}", 1) for number in range(4000)]

    async def quota() -> int:
        told = await targets_of(remote, document("service=shop", "honest"))
        return int(told["SamplingTargetDocuments"][0]["ReservoirQuota"])

    assert await quota() == 1000
    await targets_of(remote, *made_up)
    assert await quota() == 500, "one request is one client's"
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app, client=("10.0.0.9", 1)), base_url="http://127.0.0.1"
    ) as stranger:
        for each in made_up[:500]:
            await targets_of(stranger, each)
    assert await quota() == 250, "the stranger has what one peer has, and the two clients here share the rest"


async def test_a_request_with_many_documents_holds_up_nobody(remote: httpx.AsyncClient) -> None:
    answered = []

    async def ask(name: str, documents: int) -> None:
        await targets_of(remote, *[document(client=name)] * documents)
        answered.append(name)

    await asyncio.gather(ask("many", 5000), ask("as many", 5000), ask("few", 1))
    assert answered[0] == "few"


async def test_a_rule_that_went_is_said(remote: httpx.AsyncClient) -> None:
    answer = await targets_of(remote, document("service=gone"), document())
    assert [each["RuleName"] for each in answer["SamplingTargetDocuments"]] == ["Default"]
    assert answer["UnprocessedStatistics"] == [
        {"RuleName": "service=gone", "ErrorCode": "404", "Message": "no such rule"}
    ]


async def test_what_other_samplers_say_besides_is_not_looked_at(remote: httpx.AsyncClient) -> None:
    more = {**document(), "SampleCount": 0, "ServiceName": "shop", "TotalCount": 3}
    del more["SampledCount"]
    body = {**statistics(more), "SamplingBoostStatisticsDocuments": None}
    assert (await remote.post("/SamplingTargets", json=body)).status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/GetSamplingRules", b"[]", "body"),
        ("/GetSamplingRules", b'{"NextToken":"a"}', "NextToken"),
        ("/SamplingTargets", b"", "body"),
        ("/SamplingTargets", b"{}", "SamplingStatisticsDocuments"),
        ("/SamplingTargets", json.dumps(statistics(document("x" * 256))).encode(), "RuleName"),
        ("/SamplingTargets", json.dumps(statistics(document(requests=-1))).encode(), "RequestCount"),
        ("/SamplingTargets", json.dumps(statistics({**document(), "Timestamp": float("nan")})).encode(), "Timestamp"),
        ("/SamplingTargets", json.dumps(statistics(*[document()] * 5_001)).encode(), "Documents"),
    ],
    ids=str,
)
async def test_what_is_none_of_its_requests_is_refused(
    remote: httpx.AsyncClient, path: str, body: bytes, field: str
) -> None:
    answer = await remote.post(path, content=body)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["field"].endswith(field)


async def test_a_body_has_its_bound(remote: httpx.AsyncClient) -> None:
    answer = await remote.post("/SamplingTargets", content=b" " * (1 << 20) + b"{}")
    assert answer.status_code == 413


async def test_who_goes_away_before_his_body_is_there_makes_nothing_fail(app: FastAPI) -> None:
    async def gone() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    sent: list[MutableMapping[str, Any]] = []
    for path in ("/GetSamplingRules", "/SamplingTargets"):
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(b"host", b"127.0.0.1:5778"), (b"content-length", b"2")],
            "client": ("127.0.0.1", 4711),
            "server": ("127.0.0.1", 5778),
        }
        await app(scope, gone, send)


_VALUES = st.none() | st.integers() | st.floats() | st.text(max_size=9)
_KEYS = st.sampled_from(["SamplingStatisticsDocuments", "RuleName", "ClientID", "NextToken", "Timestamp"])
_JSON = st.recursive(
    _VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=5), max_leaves=20
)


@given(st.binary(max_size=200) | _JSON.map(lambda value: json.dumps(value).encode()))
def test_no_body_makes_it_fail(body: bytes) -> None:
    async def send() -> set[int]:
        store, node = Store(Path(":memory:")), FakeNode()
        access = Access(TokenFile(Path("/nonexistent")))
        client = client_of(build_app(Control(store, node), node, access=access, version="0"))
        paths = "/GetSamplingRules", "/SamplingTargets"
        return {(await client.post(path, content=body)).status_code for path in paths}

    assert asyncio.run(send()) <= {200, 422}
