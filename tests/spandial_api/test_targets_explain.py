"""GET /targets and GET /targets/explain: why a process is a target, or is none."""

from __future__ import annotations

import httpx
import pytest

from spandial.labels import Labels
from spandial_api.node import RuleFinding, TargetExplanation, TargetState
from tests.spandial_api.fake_node import FakeNode

pytestmark = pytest.mark.anyio

RULE = "include exe=nginx service=edge"


class ExplainingNode(FakeNode):
    """Its targets are there by a rule; it explains process 7 and no other."""

    def targets(self) -> list[TargetState]:
        return [state.model_copy(update={"why": f"rule: {RULE}"}) for state in super().targets()]

    async def explain(self, pid: int) -> TargetExplanation:
        if pid != 7:
            return TargetExplanation(pid=pid, name="", target=False, why="no such process", rules=[])
        finding = RuleFinding(rule=RULE, matched=True, why="executable is /usr/sbin/nginx")
        return TargetExplanation(pid=7, name="nginx", target=True, why=f"rule: {RULE}", rules=[finding])


@pytest.fixture
def node() -> FakeNode:
    return ExplainingNode()


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
