"""The end of a release, for tools that can only POST and may come twice or too late."""

from __future__ import annotations

import httpx
import pytest

from spandial_api.selectors import Selector
from tests.spandial_api.fake_node import FakeNode

pytestmark = pytest.mark.anyio


async def test_it_removes_the_rule_and_may_be_asked_again(local: httpx.AsyncClient, node: FakeNode) -> None:
    await local.put("/sampling", params={"rate": "1"})
    await local.put("/sampling", params={"rate": "100", "env": "gray"})
    first = await local.post("/sampling/restore", params={"env": "gray"})
    assert (first.status_code, first.json()) == (200, {"removed": "env=gray", "revision": 3})
    assert set(node.applied[-1].rules) == {Selector()}
    again = await local.post("/sampling/restore", params={"env": "gray"})
    assert (again.status_code, again.json()) == (200, {"removed": None, "revision": 3})


async def test_only_the_rule_of_exactly_this_selector_goes(local: httpx.AsyncClient, node: FakeNode) -> None:
    await local.put("/sampling", params={"rate": "100", "env": "gray", "service": "checkout"})
    answer = await local.post("/sampling/restore", params={"env": "gray"})
    assert answer.json()["removed"] is None
    assert len(node.applied[-1].rules) == 1


async def test_it_needs_a_token_and_known_parameters(remote: httpx.AsyncClient, local: httpx.AsyncClient) -> None:
    assert (await remote.post("/sampling/restore", params={"env": "gray"})).status_code == 401
    answer = await local.post("/sampling/restore", params={"environment": "gray"})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["field"] == "environment"


async def test_a_body_of_any_kind_is_left_alone(local: httpx.AsyncClient) -> None:
    """Release tools send descriptions of the release with everything."""
    for content in (b"", b'{"name": "checkout", "phase": "Succeeded"}', b"\xff not JSON"):
        for path in ("/sampling?rate=100&env=gray", "/sampling/restore?env=gray"):
            answer = await local.post(path, content=content, headers={"Content-Type": "application/json"})
            assert answer.status_code == 200
