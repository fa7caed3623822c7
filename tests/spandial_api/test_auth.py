"""Who may read and write."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from spandial_api.app import build_app
from spandial_api.auth import TrustedListener
from spandial_api.control import Control
from spandial_api.rules import RuleBook
from spandial_api.selectors import Selector
from spandial_api.store import Store
from spandial_api.token_file import TokenFile
from spandial_api.tokens import Scope, Token, digest_of
from tests.spandial_api.conftest import TOKEN, access_of, client_of
from tests.spandial_api.fake_node import FakeNode

pytestmark = pytest.mark.anyio

METHODS = {"get", "put", "post", "delete", "patch"}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def add_token(
    folder: Path, name: str, scope: Scope, binding: Selector | None = None, expires: float | None = None
) -> dict[str, str]:
    """The header that its holder sends."""
    token = Token(name, digest_of(f"secret of {name}"), scope, binding or Selector(), expires=expires)
    TokenFile(folder).change(lambda tokens: tokens.with_token(token))
    return bearer(f"secret of {name}")


def limited_app(store: Store, node: FakeNode, folder: Path, **limits: Any) -> FastAPI:
    return build_app(Control(store, node), node, access=access_of(folder, **limits), version="0")


async def requests_of(client: httpx.AsyncClient) -> AsyncIterator[tuple[str, str]]:
    """Every method of every path that the interface describes."""
    for path, item in (await client.get("/openapi.json")).json()["paths"].items():
        for method in METHODS & set(item):
            yield method.upper(), path


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer wrong",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Basic {TOKEN}",
        TOKEN,
        "Bearer ü",
    ],
)
async def test_a_remote_writer_without_the_token_is_told_where_it_is(
    remote: httpx.AsyncClient, node: FakeNode, tmp_path: Path, method: str, authorization: str | None
) -> None:
    headers = {} if authorization is None else {b"Authorization": authorization.encode()}
    answer = await remote.request(method, "/sampling", params={"rate": "30"}, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert "Authorization: Bearer <token>" in answer.json()["detail"]
    assert str(tmp_path / "token") in answer.json()["detail"]
    assert TOKEN not in answer.text
    assert node.applied == [RuleBook()]


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_a_remote_writer_with_the_token_may_write(remote: httpx.AsyncClient, scheme: str) -> None:
    headers = {"Authorization": f"{scheme} {TOKEN}"}
    assert (await remote.put("/sampling", params={"rate": "30"}, headers=headers)).status_code == 200
    assert (await remote.delete("/sampling", headers=headers)).status_code == 200


async def test_a_writer_on_the_trusted_listener_needs_no_token(local: httpx.AsyncClient) -> None:
    assert (await local.put("/sampling", params={"rate": "30"})).status_code == 200


async def test_trust_is_the_listeners_and_cannot_be_claimed(remote: httpx.AsyncClient) -> None:
    claims = {"spandial.peer": "uid 0", "X-Forwarded-For": "127.0.0.1", "X-Real-IP": "unix"}
    answer = await remote.put("/sampling", params={"rate": "30"}, headers=claims)
    assert answer.status_code == 401


@pytest.mark.parametrize(
    "path", ["/sampling", "/targets", "/stats", "/entries", "/metrics", "/healthz", "/docs", "/openapi.json"]
)
async def test_reading_needs_no_token(remote: httpx.AsyncClient, path: str) -> None:
    assert (await remote.get(path)).status_code == 200


async def test_what_a_writer_does_wrong_is_said_only_to_who_may_write(remote: httpx.AsyncClient) -> None:
    assert (await remote.put("/sampling", params={"rate": "many"})).status_code == 401
    assert (await remote.put("/sampling", params={"rate": "many"}, headers=bearer(TOKEN))).status_code == 422
    for method, path in (
        ("DELETE", "/sampling"),
        ("PUT", "/sampling/renew"),
        ("POST", "/sampling/restore"),
        ("POST", "/sampling/undo"),
        ("PUT", "/budget"),
        ("DELETE", "/quotas"),
    ):
        wrong = {"moon": "full"}
        assert (await remote.request(method, path, params=wrong)).status_code == 401, path
        assert (await remote.request(method, path, params=wrong, headers=bearer(TOKEN))).status_code == 422, path


async def test_tokens_come_and_go_without_a_restart(remote: httpx.AsyncClient, tmp_path: Path) -> None:
    header = add_token(tmp_path, "ci", "write")
    assert (await remote.put("/sampling", params={"rate": "30"}, headers=header)).status_code == 200
    TokenFile(tmp_path).change(lambda tokens: tokens.without("ci"))
    answer = await remote.put("/sampling", params={"rate": "30"}, headers=header)
    assert answer.status_code == 401
    assert answer.json()["detail"].startswith("this token is not known here")


async def test_a_token_that_has_expired_is_refused_and_named(remote: httpx.AsyncClient, tmp_path: Path) -> None:
    old = add_token(tmp_path, "old", "write", expires=time.time() - 1)
    new = add_token(tmp_path, "new", "write", expires=time.time() + 3600)
    answer = await remote.put("/sampling", params={"rate": "30"}, headers=old)
    assert (answer.status_code, answer.json()["detail"].partition(". ")[0]) == (401, "the token old has expired")
    assert (await remote.put("/sampling", params={"rate": "30"}, headers=new)).status_code == 200


async def test_a_reader_may_not_write(remote: httpx.AsyncClient, node: FakeNode, tmp_path: Path) -> None:
    header = add_token(tmp_path, "prometheus", "read")
    assert (await remote.get("/metrics", headers=header)).status_code == 200
    answer = await remote.put("/sampling", params={"rate": "30"}, headers=header)
    assert answer.status_code == 403
    assert answer.json() == {"detail": "token prometheus may read, and this needs the scope write"}
    assert node.applied == [RuleBook()]


@pytest.mark.parametrize("scope", ["write", "admin"])
async def test_admin_implies_write_and_write_read(store: Store, node: FakeNode, tmp_path: Path, scope: Scope) -> None:
    app = limited_app(store, node, tmp_path, read_without_token=False)
    header = add_token(tmp_path, "x", scope)
    async with client_of(app) as client:
        assert (await client.put("/sampling", params={"rate": "30"}, headers=header)).status_code == 200
        assert (await client.get("/sampling", headers=header)).status_code == 200


async def test_a_bound_token_touches_only_what_it_is_bound_to(
    remote: httpx.AsyncClient, local: httpx.AsyncClient, node: FakeNode, tmp_path: Path
) -> None:
    header = add_token(tmp_path, "ci", "write", Selector("checkout", env="gray-*"))
    inside = {"service": "checkout", "env": "gray-1"}
    assert (await remote.put("/sampling", params={"rate": "30", **inside}, headers=header)).status_code == 200
    ttl = {"ttl": "10m"}
    assert (await remote.put("/sampling/renew", params={**ttl, **inside}, headers=header)).status_code == 200
    assert (await remote.delete("/sampling", params=inside, headers=header)).status_code == 200
    await local.put("/sampling", params={"rate": "5"})
    before = node.applied[-1]
    for outside in (
        {},
        {"service": "checkout"},
        {"service": "checkout", "env": "*"},
        {"service": "s", "env": "gray-1"},
    ):
        answers = [
            await remote.put("/sampling", params={"rate": "30", **outside}, headers=header),
            await remote.put("/sampling/renew", params={**ttl, **outside}, headers=header),
            await remote.delete("/sampling", params=outside, headers=header),
        ]
        assert [answer.status_code for answer in answers] == [403, 403, 403]
    assert answers[0].json()["detail"] == (
        "token ci may only touch rules inside of service=checkout env=gray-*, "
        "and this one is for service=s env=gray-1; nothing was changed"
    )
    assert node.applied[-1] is before


async def test_a_bound_token_gets_nowhere_by_a_batch_or_by_undoing(
    remote: httpx.AsyncClient, local: httpx.AsyncClient, node: FakeNode, tmp_path: Path
) -> None:
    header = add_token(tmp_path, "ci", "write", Selector("checkout"))
    await local.put("/sampling", params={"rate": "5", "service": "shop"})
    await local.put("/sampling", params={"rate": "5", "service": "checkout"})
    before = node.applied[-1]
    inside, outside = {"service": "checkout", "rate": 30}, {"service": "shop", "rate": 30}
    for body in ({"put": [inside, outside]}, {"put": [inside], "remove": [{"service": "shop"}]}):
        assert (await remote.post("/sampling/batch", json=body, headers=header)).status_code == 403
    assert (await remote.post("/sampling/undo", params={"revision": 1}, headers=header)).status_code == 403
    assert node.applied[-1] is before
    assert (await remote.post("/sampling/undo", params={"revision": 2}, headers=header)).status_code == 200
    assert (await remote.post("/sampling/batch", json={"put": [inside]}, headers=header)).status_code == 200
    assert [entry["who"] for entry in (await remote.get("/audit")).json()["entries"]][:2] == ["token ci"] * 2


async def test_without_free_reading_every_route_but_health_needs_a_token(
    store: Store, node: FakeNode, tmp_path: Path
) -> None:
    app = limited_app(store, node, tmp_path, read_without_token=False)
    header = add_token(tmp_path, "reader", "read")
    async with client_of(app) as client, client_of(TrustedListener(app)) as local:
        seen = []
        async for method, path in requests_of(client):
            if path == "/healthz":
                continue
            answer = await client.request(method, path, headers={"X-Peer": "unix"})
            assert answer.status_code in (401, 429), (method, path)
            if method == "GET":
                assert (await client.get(path, headers=header)).status_code not in (401, 403, 429), path
                assert (await local.get(path)).status_code not in (401, 403, 429), path
            seen.append(path)
        assert {"/sampling", "/targets", "/stats", "/entries", "/metrics"} <= set(seen)
        assert (await client.get("/healthz")).status_code == 200


async def test_with_free_reading_a_wrong_token_is_no_obstacle(remote: httpx.AsyncClient) -> None:
    assert (await remote.get("/sampling", headers=bearer("wrong"))).status_code == 200


async def test_every_route_that_is_no_get_needs_a_token_even_where_reading_is_free(remote: httpx.AsyncClient) -> None:
    found = []
    async for method, path in requests_of(remote):
        if method != "GET" and path not in ("/GetSamplingRules", "/SamplingTargets"):  # which change nothing
            found.append(path)
            assert (await remote.request(method, path)).status_code in (401, 429), (method, path)
    assert {"/sampling", "/sampling/batch", "/sampling/undo", "/budget", "/quotas"} <= set(found)


async def test_who_writes_too_often_changes_nothing_and_is_told_when_he_may(
    store: Store, node: FakeNode, tmp_path: Path
) -> None:
    clock = Clock()
    app = limited_app(store, node, tmp_path, writes_per_second=0.5, now=clock)
    header = add_token(tmp_path, "ci", "write")
    async with client_of(app) as client:
        assert (await client.put("/sampling", params={"rate": "30"}, headers=header)).status_code == 200
        answer = await client.put("/sampling", params={"rate": "40"}, headers=header)
        assert (answer.status_code, answer.headers["Retry-After"]) == (429, "2")
        assert answer.json()["detail"].startswith("token ci writes more often than SPANDIAL_WRITES_PER_SECOND allows")
        assert node.applied[-1].revision == 1
        assert (await client.put("/sampling", params={"rate": "40"}, headers=bearer(TOKEN))).status_code == 200
        assert (await client.get("/sampling", headers=header)).status_code == 200
        clock.now += 2
        assert (await client.put("/sampling", params={"rate": "40"}, headers=header)).status_code == 200
    async with client_of(TrustedListener(app, 0)) as root, client_of(TrustedListener(app, 1000)) as member:
        for client in (root, member):
            statuses = [(await client.put("/sampling", params={"rate": "1"})).status_code for _ in range(2)]
            assert statuses == [200, 429]


async def test_who_fails_too_often_is_told_so_and_keeps_no_right_token_out(
    store: Store, node: FakeNode, tmp_path: Path
) -> None:
    clock = Clock()
    app = limited_app(store, node, tmp_path, now=clock)
    async with client_of(app) as client:
        answers = [await client.put("/sampling", params={"rate": "1"}, headers=bearer("no")) for _ in range(25)]
        assert [answer.status_code for answer in answers] == [401] * 20 + [429] * 5
        assert answers[-1].headers["Retry-After"] == "1"
        assert (await client.put("/sampling", params={"rate": "1"}, headers=bearer(TOKEN))).status_code == 200
        clock.now += 1
        assert (await client.put("/sampling", params={"rate": "1"})).status_code == 401


async def test_refusals_are_counted_by_reason(store: Store, node: FakeNode, tmp_path: Path) -> None:
    app = limited_app(store, node, tmp_path, writes_per_second=0.5, now=Clock())
    reader = add_token(tmp_path, "reader", "read")
    bound = add_token(tmp_path, "bound", "write", Selector("checkout"))
    async with client_of(app) as client:
        for headers in ({}, reader, bound, bound):
            await client.put("/sampling", params={"rate": "1"}, headers=headers)
        lines = (await client.get("/metrics")).text.splitlines()
    counts = [line for line in lines if line.startswith("spandial_requests_refused_total")]
    reasons = ("unauthenticated", "scope", "binding", "rate")
    assert counts == [f'spandial_requests_refused_total{{reason="{reason}"}} 1.0' for reason in reasons]


async def test_health_says_that_the_tokens_cannot_be_read(remote: httpx.AsyncClient, tmp_path: Path) -> None:
    assert (await remote.get("/healthz")).json()["status"] == "ok"
    whole = (tmp_path / "tokens.json").read_text()
    (tmp_path / "tokens.json").write_text("{")
    health = (await remote.get("/healthz")).json()
    assert health["status"] == "degraded"
    [sentence] = health["missing"]
    assert sentence.startswith("the tokens cannot be read (")
    assert (await remote.put("/sampling", params={"rate": "30"}, headers=bearer(TOKEN))).status_code == 200
    (tmp_path / "tokens.json").write_text(whole)
    assert (await remote.get("/healthz")).json()["status"] == "ok"
