"""GET /healthz."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
from fastapi import FastAPI

from spandial_api.store import Store
from tests.spandial_api.conftest import client_of
from tests.spandial_api.fake_node import FakeNode

pytestmark = pytest.mark.anyio


async def test_a_whole_node_is_ok(remote: httpx.AsyncClient) -> None:
    answer = await remote.get("/healthz")
    assert answer.status_code == 200
    assert answer.json()["status"] == "ok"
    assert answer.json()["missing"] == []


async def test_a_degraded_node_still_serves_and_says_what_is_missing(remote: httpx.AsyncClient, node: FakeNode) -> None:
    node.missing = ["capture is off: SPANDIAL_CAPTURE=off."]
    answer = await remote.get("/healthz")
    assert answer.status_code == 200
    assert answer.json()["status"] == "degraded"
    assert answer.json()["missing"] == ["capture is off: SPANDIAL_CAPTURE=off."]


async def test_the_revision_is_that_of_the_rules_in_force(remote: httpx.AsyncClient, local: httpx.AsyncClient) -> None:
    await local.put("/sampling", params={"rate": "30"})
    await local.delete("/sampling")
    assert (await remote.get("/healthz")).json()["revision"] == 2


async def test_a_store_that_takes_no_change_is_missing(remote: httpx.AsyncClient, app: FastAPI) -> None:
    app.state.control.trouble = "the rules in x cannot be written: disk is full"
    answer = await remote.get("/healthz")
    assert answer.json()["status"] == "degraded"
    assert answer.json()["missing"] == ["the rules in x cannot be written: disk is full."]


async def test_what_the_store_has_lost_is_said(make_app: Callable[[Store], FastAPI], store: Store) -> None:
    store.damage = ["revisions 3 to 4 were lost in the store"]
    health = (await client_of(make_app(store)).get("/healthz")).json()
    assert health["status"] == "degraded"
    assert "revisions 3 to 4 were lost in the store." in health["missing"]
