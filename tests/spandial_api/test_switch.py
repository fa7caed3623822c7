"""/switch: off at once whatever the disk says, and on again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from spandial_api import switch as switch_module
from spandial_api.control import Author, Control
from spandial_api.store import Store, StoreError
from spandial_api.switch import Switch
from tests.agent_process import eventually
from tests.spandial_api.fake_node import FakeNode

pytestmark = pytest.mark.anyio

ME = Author("me", "latency")
ON = {"state": "on", "who": "", "why": "", "time": None, "until": None, "fallback_rate": None}


async def test_it_is_on_until_somebody_switches_it_off_and_on_again(local: httpx.AsyncClient, node: FakeNode) -> None:
    assert (await local.get("/switch")).json() == ON
    assert node.off == ""
    answer = await local.put("/switch", params={"state": "off", "why": "latency"})
    assert answer.status_code == 200
    state = answer.json()
    assert (state["state"], state["why"], state["until"]) == ("off", "latency", None)
    assert "(latency), until somebody runs 'spandial on'" in node.off
    assert (await local.get("/switch")).json() == state
    assert (await local.post("/switch", params={"state": "on"})).json() == ON
    assert node.off == ""
    [on, off] = (await local.get("/audit")).json()["entries"]
    assert (on["action"], off["action"], off["why"]) == ("on", "off", "latency")


async def test_rules_that_change_meanwhile_hold_when_it_is_on_again(local: httpx.AsyncClient, node: FakeNode) -> None:
    await local.put("/switch", params={"state": "off"})
    assert (await local.put("/sampling", params={"rate": "30"})).status_code == 200
    assert [rule.rate for rule in node.applied[-1]] == [30]
    assert node.off


async def test_it_says_what_hooks_keep_meanwhile(local: httpx.AsyncClient) -> None:
    await local.put("/sampling", params={"rate": "30", "env": "gray", "mode": "boost"})
    assert (await local.put("/switch", params={"state": "off"})).json()["fallback_rate"] is None
    await local.put("/sampling", params={"rate": "1"})
    assert (await local.get("/switch")).json()["fallback_rate"] == 1


async def test_only_an_admin_may(remote: httpx.AsyncClient, node: FakeNode) -> None:
    assert (await remote.put("/switch", params={"state": "off"})).status_code == 401
    assert node.off == ""
    assert (await remote.get("/switch")).json() == ON


@pytest.mark.parametrize(
    ("query", "code"),
    [({}, 422), ({"state": "of"}, 422), ({"state": "off", "ttl": "soon"}, 422), ({"state": "on", "ttl": "1m"}, 409)],
)
async def test_what_makes_no_sense_changes_nothing(
    local: httpx.AsyncClient, node: FakeNode, query: dict[str, str], code: int
) -> None:
    assert (await local.put("/switch", params=query)).status_code == code
    assert node.off == ""


async def test_it_is_on_again_when_its_time_has_come(
    store: Store, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(switch_module, "_LOOK_S", 0.01)
    control = Control(store, node)
    switch = Switch(control, node)
    off = await switch.turn_off(ME, 0.05)
    assert off.until is not None
    running = asyncio.create_task(switch.run())
    await asyncio.to_thread(eventually, lambda: not node.off, "it is on again")
    running.cancel()
    assert time.time() >= off.until - 0.05
    [on, _] = await control.audit(2)
    assert (on.who, on.why) == ("spandial", "its time had come")


async def test_it_stays_off_over_a_restart_and_not_beyond_its_time(store: Store, node: FakeNode) -> None:
    await Switch(Control(store, node), node).turn_off(ME)
    restarted = FakeNode()
    assert Switch(Control(store, restarted), restarted).off is not None
    assert restarted.off
    await Switch(Control(store, node), node).turn_off(ME, 60)
    later = FakeNode()
    Switch(Control(store, later, now=lambda: time.time() + 61), later)
    assert later.off == ""


async def test_a_disk_that_takes_nothing_keeps_nobody_from_switching_it_off(
    store: Store, node: FakeNode, monkeypatch: pytest.MonkeyPatch, make_app: Callable[[Store], FastAPI]
) -> None:
    switch = Switch(Control(store, node), node)

    def full(*_: Any, **__: Any) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(store, "write", full)
    with pytest.raises(StoreError):
        await switch.turn_off(ME)
    assert node.off
    await switch.turn_on(ME)  # a restart would find it on
    assert node.off == ""


async def test_what_is_stored_is_switched_on_only_where_a_restart_would_find_it_so(
    store: Store, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = 0.0
    switch = Switch(Control(store, node, now=lambda: time.time() + later), node)
    await switch.turn_off(ME, 60)

    def full(*_: Any, **__: Any) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(store, "write", full)
    with pytest.raises(StoreError):
        await switch.turn_on(ME)
    assert node.off
    later = 61
    await switch.turn_on(ME)
    assert node.off == ""


async def test_a_switch_that_cannot_be_read_is_said(
    store: Store, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(_: str) -> None:
        raise StoreError("the file is damaged")

    monkeypatch.setattr(store, "document", unreadable)
    control = Control(store, node)
    assert Switch(control, node).off is None
    assert "switched off cannot be read" in control.damage[-1]


async def test_a_switch_is_no_rule_that_could_be_undone(local: httpx.AsyncClient, store: Store) -> None:
    await local.put("/switch", params={"state": "off"})
    [entry] = (await local.get("/audit")).json()["entries"]
    answer = await local.post("/sampling/undo", params={"revision": str(entry["revision"])})
    assert answer.status_code == 409
    assert "switched the node off" in answer.json()["detail"]


async def test_what_another_version_stored_is_as_if_it_were_not_there(store: Store, node: FakeNode) -> None:
    for body in (None, [], {"until": "soon"}, {"who": 1}):
        store.set_document("switch", body)
        assert Switch(Control(store, node), node).off is None
