"""/budget and /quotas, and what of them is stored."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httpx
import pytest
from fastapi import FastAPI

from spandial_api.breaker import Circuit
from spandial_api.budgets import Limits
from spandial_api.control import Author, Control
from spandial_api.guard import QUOTAS_MAX, Guard, TooManyQuotas
from spandial_api.node_states import BudgetUse, TenantUse
from spandial_api.store import Store, StoreError
from tests.spandial_api.fake_node import FakeNode

pytestmark = pytest.mark.anyio

NOBODY = {"who": "", "why": "", "time": None}
ME = Author("me", "release")


async def test_there_is_no_limit_until_somebody_sets_one(local: httpx.AsyncClient, node: FakeNode) -> None:
    assert (await local.get("/budget")).json() == {"entries": None, "demand": None, "limited": 0, **NOBODY}
    assert (await local.get("/quotas")).json() == {"default": None, "quotas": []}
    assert node.limits == Limits()


async def test_a_budget_is_held_and_shown_with_its_use(local: httpx.AsyncClient, node: FakeNode) -> None:
    node.budget = BudgetUse(demand=7000, limited=3)
    answer = await local.put("/budget", params={"entries": "5000", "why": "the collector is small"})
    assert answer.status_code == 200
    assert node.limits == Limits(budget=5000)
    state = answer.json()
    assert state.pop("time") > 0
    assert state == {
        "entries": 5000,
        "demand": 7000,
        "limited": 3,
        "who": state["who"],
        "why": "the collector is small",
    }
    assert state["who"]
    assert (await local.get("/budget")).json()["entries"] == 5000
    assert (await local.delete("/budget")).json()["entries"] is None
    assert node.limits == Limits()


async def test_a_quota_is_held_and_shown_with_the_circuit(local: httpx.AsyncClient, node: FakeNode) -> None:
    node.tenants = [TenantUse(tenant="acme", quota=100, demand=130, circuit="closed", lasted=12, open_for=[7])]
    answer = await local.post("/quotas", params={"tenant": "acme", "entries": "100"})
    assert answer.status_code == 200
    assert node.limits.quota_of("acme") == 100
    await local.put("/quotas", params={"tenant": "zeta", "entries": "5"})
    [acme, zeta] = (await local.get("/quotas")).json()["quotas"]
    assert (acme["tenant"], acme["demand"], acme["circuit"], acme["lasted"]) == ("acme", 130, "closed", 12)
    assert acme["open_for"] == [7]
    assert (zeta["tenant"], zeta["entries"], zeta["demand"]) == ("zeta", 5, 0)
    assert (await local.delete("/quotas", params={"tenant": "acme"})).status_code == 200
    assert node.limits.quota_of("acme") is None


async def test_a_quota_that_is_not_there_cannot_be_removed(local: httpx.AsyncClient) -> None:
    answer = await local.delete("/quotas", params={"tenant": "acme"})
    assert answer.status_code == 404
    assert "'acme' has no quota" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("path", "parameters", "field"),
    [
        ("/budget", {}, "entries"),
        ("/budget", {"entries": "0"}, "entries"),
        ("/budget", {"entries": "nan"}, "entries"),
        ("/budget", {"entries": "5", "rate": "5"}, "rate"),
        ("/quotas", {"entries": "5"}, "tenant"),
        ("/quotas", {"entries": "5", "tenant": ""}, "tenant"),
        ("/quotas", {"entries": "-1", "tenant": "acme"}, "entries"),
    ],
)
async def test_bad_input_is_refused_and_changes_nothing(
    local: httpx.AsyncClient, node: FakeNode, path: str, parameters: dict[str, str], field: str
) -> None:
    answer = await local.put(path, params=parameters)
    assert answer.status_code == 422
    assert [problem["field"] for problem in answer.json()["detail"]] == [field]
    assert node.limits == Limits()


async def test_over_tcp_it_takes_a_token(remote: httpx.AsyncClient, node: FakeNode) -> None:
    assert (await remote.put("/budget", params={"entries": "5"})).status_code == 401
    assert (await remote.delete("/quotas", params={"tenant": "acme"})).status_code == 401
    assert node.limits == Limits()


async def test_limits_survive_a_restart(
    local: httpx.AsyncClient, make_app: Callable[[Store], FastAPI], store: Store, node: FakeNode
) -> None:
    await local.put("/budget", params={"entries": "5000"})
    await local.put("/quotas", params={"tenant": "acme", "entries": "100"})
    before = node.limits
    node.limits = Limits()
    make_app(store)
    assert node.limits == before


async def test_settings_hold_where_nobody_wrote_anything(store: Store, node: FakeNode) -> None:
    guard = Guard(Control(store, node), node, Limits(budget=100, quota=10))
    assert node.limits == Limits(100, 10)
    await guard.set_budget(50, ME)
    await guard.set_quota("acme", 5, ME)
    assert (node.limits.budget, node.limits.quota_of("acme"), node.limits.quota_of("other")) == (50, 5, 10)
    assert node.limits.quota_of("") is None
    await guard.set_budget(None, ME)
    assert node.limits.budget == 100


async def test_there_is_a_bound_to_quotas(store: Store, node: FakeNode) -> None:
    guard = Guard(Control(store, node), node, Limits())
    guard.quotas = {f"t{number}": guard._written(1, ME) for number in range(QUOTAS_MAX)}
    with pytest.raises(TooManyQuotas):
        await guard.set_quota("one more", 1, ME)
    await guard.set_quota("t1", 2, ME)


async def test_a_disk_that_takes_nothing_changes_nothing(
    local: httpx.AsyncClient, store: Store, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_entries: object, document: object) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(store, "write", full)
    answer = await local.put("/budget", params={"entries": "5000"})
    assert answer.status_code == 503
    assert node.limits == Limits()


async def test_open_circuits_survive_a_restart(store: Store, node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spandial_api.guard._LOOK_S", 0.01)
    control = Control(store, node)
    running = asyncio.create_task(Guard(control, node, Limits()).run())
    node.open_circuits = {"acme": Circuit("open"), "zeta": Circuit("half-open", 17.5)}
    while store.document("circuits") is None:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    running.cancel()
    expected, node.open_circuits = dict(node.open_circuits), {}
    Guard(control, node, Limits())
    assert node.open_circuits == expected


async def test_a_time_that_goes_on_is_not_written_again_and_again(
    store: Store, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spandial_api.guard._LOOK_S", 0.001)
    written: list[object] = []
    monkeypatch.setattr(store, "set_document", lambda name, body: written.append(body))
    running = asyncio.create_task(Guard(Control(store, node), node, Limits()).run())
    for second in range(50):
        node.open_circuits = {"acme": Circuit("half-open", float(second))}
        await asyncio.sleep(0.002)
    running.cancel()
    assert len(written) == 1


@pytest.mark.parametrize("body", [[], {"budget": 5}, {"budget": None, "quotas": {"acme": 5}}, "x"])
async def test_what_cannot_be_read_is_as_if_it_were_not_there(store: Store, node: FakeNode, body: object) -> None:
    for name in ("limits", "circuits"):
        store.set_document(name, body)
    Guard(Control(store, node), node, Limits(budget=7))
    assert node.limits == Limits(budget=7)
    assert node.open_circuits == {}


async def test_metrics_show_limits(local: httpx.AsyncClient, node: FakeNode) -> None:
    node.budget = BudgetUse(demand=7000, limited=3)
    node.tenants = [TenantUse(tenant="acme", quota=100, demand=130, circuit="open", lasted=None)]
    await local.put("/budget", params={"entries": "5000"})
    text = (await local.get("/metrics")).text
    for line in (
        "spandial_limited_targets 3.0",
        "spandial_budget 5000.0",
        "spandial_demand 7000.0",
        'spandial_tenant_quota{tenant="acme"} 100.0',
        'spandial_tenant_demand{tenant="acme"} 130.0',
        'spandial_tenant_circuit{state="open",tenant="acme"} 1.0',
        'spandial_tenant_circuit{state="closed",tenant="acme"} 0.0',
    ):
        assert line in text.splitlines()


async def test_who_sets_the_budget_and_a_quota_at_once_gets_both(store: Store, node: FakeNode) -> None:
    guard = Guard(Control(store, node), node, Limits())
    await asyncio.gather(guard.set_budget(5000, ME), guard.set_quota("acme", 100, ME), guard.set_quota("zeta", 5, ME))
    assert node.limits == Limits(budget=5000, quotas={"acme": 100, "zeta": 5})
    await asyncio.gather(guard.set_quota("acme", None, ME), guard.set_budget(None, ME))
    assert node.limits == Guard(Control(store, node), node, Limits()).limits == Limits(quotas={"zeta": 5})
