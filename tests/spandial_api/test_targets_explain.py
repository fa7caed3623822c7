"""GET /targets and GET /targets/explain: why a process is a target, or is none."""

from __future__ import annotations

import httpx
import pytest

from spandial.labels import Labels
from spandial_api.node_states import Connections, RuleFinding, TargetExplanation
from tests.spandial_api.fake_node import FakeNode

pytestmark = pytest.mark.anyio

RULE = "include exe=nginx service=edge"


@pytest.fixture
def node() -> FakeNode:
    """Its targets are there by a rule; it knows process 7 and no other."""
    node = FakeNode()
    node.why = f"rule: {RULE}"
    finding = RuleFinding(rule=RULE, matched=True, why="executable is /usr/sbin/nginx")
    connections = [Connections(incoming=False, address="::1", port=8080, count=3)]
    node.explained[7] = TargetExplanation(
        pid=7, name="nginx", target=True, why=node.why, rules=[finding], listens=[80, 443], connections=connections
    )
    return node


async def test_every_target_says_why_it_is_one(remote: httpx.AsyncClient, node: FakeNode) -> None:
    node.processes = [Labels("edge")]
    [target] = (await remote.get("/targets")).json()
    assert target["why"] == f"rule: {RULE}"


async def test_a_target_is_explained_rule_by_rule(remote: httpx.AsyncClient) -> None:
    answer = await remote.get("/targets/explain", params={"pid": 7})
    assert answer.status_code == 200
    assert answer.json() == {
        "pid": 7,
        "name": "nginx",
        "target": True,
        "why": f"rule: {RULE}",
        "rules": [{"rule": RULE, "matched": True, "why": "executable is /usr/sbin/nginx"}],
        "listens": [80, 443],
        "connections": [{"incoming": False, "address": "::1", "port": 8080, "count": 3}],
    }


async def test_a_process_that_does_not_exist_is_explained_too(remote: httpx.AsyncClient) -> None:
    answer = await remote.get("/targets/explain", params={"pid": 8})
    assert answer.status_code == 200
    assert answer.json()["why"] == "no such process"


@pytest.mark.parametrize("pid", ["0", "-1", "2147483648", "nginx", ""])
async def test_what_is_no_process_id_is_refused(remote: httpx.AsyncClient, pid: str) -> None:
    answer = await remote.get("/targets/explain", params={"pid": pid})
    assert answer.status_code == 422
    [problem] = answer.json()["detail"]
    assert (problem["field"], problem["received"]) == ("pid", pid)


async def test_a_process_id_is_needed_and_nothing_else_is_taken(remote: httpx.AsyncClient) -> None:
    [problem] = (await remote.get("/targets/explain")).json()["detail"]
    assert (problem["field"], problem["received"]) == ("pid", None)
    [problem] = (await remote.get("/targets/explain", params={"pid": 7, "name": "nginx"})).json()["detail"]
    assert problem["field"] == "name"


async def test_explaining_is_documented(remote: httpx.AsyncClient) -> None:
    operation = (await remote.get("/openapi.json")).json()["paths"]["/targets/explain"]["get"]
    assert operation["summary"]
    assert operation["description"].endswith(".")
