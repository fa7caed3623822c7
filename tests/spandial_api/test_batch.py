"""POST /sampling/batch: all or nothing."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from spandial_api import control as control_module
from spandial_api.rules import RuleBook
from spandial_api.selectors import Selector
from tests.spandial_api.fake_node import FakeNode

pytestmark = pytest.mark.anyio


async def test_rules_come_and_go_together(local: httpx.AsyncClient, node: FakeNode) -> None:
    await local.put("/sampling", params={"rate": "5", "env": "blue"})
    body = {
        "put": [
            {"env": "gray", "rate": 100, "mode": "boost", "ttl": "10m"},
            {"service": "checkout", "operation": "GET /health*", "rate": "0"},
            {"labels": {"team": "pay", "region": "eu*"}, "target": 50},
        ],
        "remove": [{"env": "blue"}],
        "why": "release 4.2",
    }
    answer = await local.post("/sampling/batch", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["ETag"] == '"2"'
    told = answer.json()
    assert (told["revision"], told["removed"]) == (2, ["env=blue"])
    assert [(rule["selector"], rule["rate"], rule["target"], rule["revision"]) for rule in told["rules"]] == [
        ("env=gray", 100, None, 2),
        ('service=checkout operation="GET /health*"', 0, None, 2),
        ("label.region=eu* label.team=pay", None, 50, 2),
    ]
    assert [len(book.rules) for book in node.applied] == [0, 1, 3]
    [latest, _] = (await local.get("/audit")).json()["entries"]
    assert (latest["action"], latest["why"], len(latest["changes"])) == ("batch", "release 4.2", 4)
    undone = await local.post("/sampling/undo", params={"revision": 2})
    assert undone.status_code == 200
    assert set(node.applied[-1].rules) == {Selector(env="blue")}


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"put": [{"env": "gray", "rate": 30}, {"env": "blue", "rate": 300}]}, 422, "less than or equal to 100"),
        ({"put": [{"env": "gray", "rate": 30}, {"env": "blue"}]}, 422, "a rate, such as 30; or target=100"),
        ({"put": [{"env": "gray", "rate": 30, "target": 7}]}, 422, "not both"),
        ({"put": [{"env": "gray", "rate": 30}, {"env": "gray", "rate": 1}]}, 422, "each selector once"),
        ({"put": [{"env": "gray", "rate": 30, "pod": "x"}]}, 422, "Extra inputs"),
        ({"put": [{"env": "gray", "rate": 30}], "remove": [{"env": "blue"}]}, 404, "no rule for env=blue"),
        ({"put": [{"env": "gray", "rate": 30}], "remove": [{"env": "gray"}]}, 422, "each selector once"),
        ({"put": []}, 422, "one rule at least"),
        ([], 422, "valid dictionary"),
    ],
)
async def test_one_bad_rule_and_nothing_is_changed(
    local: httpx.AsyncClient, node: FakeNode, body: Any, status: int, words: str
) -> None:
    answer = await local.post("/sampling/batch", json=body)
    assert (answer.status_code, words in answer.text) == (status, True), answer.text
    assert node.applied == [RuleBook()]


async def test_a_batch_is_a_write_and_is_bounded(
    remote: httpx.AsyncClient, local: httpx.AsyncClient, app: FastAPI
) -> None:
    body = {"put": [{"service": f"s{number}", "rate": 1} for number in range(1000)]}
    assert (await remote.post("/sampling/batch", json=body)).status_code == 401
    assert (await local.post("/sampling/batch", json=body, headers={"If-Match": '"3"'})).status_code == 412
    assert (await local.post("/sampling/batch", json=body)).status_code == 200
    body["put"].append({"service": "s1000", "rate": 1})
    assert (await local.post("/sampling/batch", json=body)).status_code == 422
    assert len(app.state.control.book.rules) == 1000


async def test_a_rule_without_an_end_is_bounded_in_a_batch_too(local: httpx.AsyncClient, app: FastAPI) -> None:
    app.state.max_rate_without_ttl = 50
    refused = await local.post("/sampling/batch", json={"put": [{"rate": 1}, {"env": "gray", "rate": 60}]})
    assert refused.json()["detail"][0]["field"] == "put.1.ttl"
    assert (await local.post("/sampling/batch", json={"put": [{"env": "gray", "target": 60}]})).status_code == 200


@pytest.mark.parametrize(
    ("media_type", "body"),
    [
        ("text/plain", b"{}"),
        ("application/json", b'{"put": [{"rate": NaN}]}'),
        ("application/json", b'{"put": [{"rate": 1e999}]}'),
        ("application/json", b'{"put": [{"target": NaN}]}'),
        ("application/json", b'{"put": [{"rate": 1, "service": "\\ud800"}]}'),
        ("application/json", b'{"put": [{"rate": 1, "labels": {"\\ud800": "x"}}]}'),
        ("application/json", b'{"put": [{"rate": 1}], "why": "\\ud800"}'),
    ],
)
async def test_what_no_answer_could_repeat_is_refused_as_it_looks(
    local: httpx.AsyncClient, node: FakeNode, media_type: str, body: bytes
) -> None:
    answer = await local.post("/sampling/batch", content=body, headers={"Content-Type": media_type})
    assert answer.status_code == 422, answer.text
    assert answer.json()["detail"]
    assert node.applied == [RuleBook()]


async def test_there_can_be_so_many_rules_and_no_more(
    local: httpx.AsyncClient, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_module, "RULES_MAX", 2)
    gray, blue, green = ({"env": env, "rate": "1"} for env in ("gray", "blue", "green"))
    assert (await local.post("/sampling/batch", json={"put": [gray, blue, green]})).status_code == 409
    assert (await local.post("/sampling/batch", json={"put": [gray, blue]})).status_code == 200
    assert (await local.put("/sampling", params=green)).status_code == 409
    assert (await local.put("/sampling", params={**gray, "rate": "2"})).status_code == 200
    answer = await local.post("/sampling/batch", json={"put": [green], "remove": [{"env": "blue"}]})
    assert answer.status_code == 200
    assert [len(book.rules) for book in node.applied] == [0, 2, 2, 2]
    refused = await local.put("/sampling", params={"rate": "1", "env": "red"})
    assert "remove some first" in refused.json()["detail"]
    paths = (await local.get("/openapi.json")).json()["paths"]
    for path, method in (("/sampling", "put"), ("/sampling", "post"), ("/sampling/batch", "post"), ("/quotas", "put")):
        assert "409" in paths[path][method]["responses"], path
