"""Requests that a browser sends for somebody else's page."""

from __future__ import annotations

import httpx
import pytest
from fastapi import FastAPI

from spandial_api.app import build_app
from spandial_api.control import Control
from spandial_api.host_names import is_own_host, parse_host_names
from spandial_api.store import Store
from tests.spandial_api.conftest import TOKEN, access_of, client_of
from tests.spandial_api.fake_node import FakeNode

pytestmark = pytest.mark.anyio

NAMES = frozenset({"node-7.example"})
READS = ["/targets", "/audit", "/sampling", "/metrics", "/stats", "/healthz", "/docs", "/openapi.json", "/nothing"]


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.0.0.1:5778", "10.1.2.3:1", "[::1]:5778", "[fd00::7]", "[::ffff:10.0.0.1]:80"),
        *("localhost", "LOCALHOST:5778", "localhost.", "node-7.example:5778", "Node-7.Example"),
    ],
)
async def test_an_address_localhost_and_given_names_are_own(host: str) -> None:
    assert is_own_host(host, NAMES)


@pytest.mark.parametrize(
    "host",
    [
        *(
            "",
            "evil.example",
            "evil.example:5778",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "127.1",
            "0x7f.1",
        ),
        *("node-7.example.evil", "xnode-7.example", "127.0.0.1@evil.example", "evil.example/127.0.0.1", "[::1", "[]:1"),
        *("127.0.0.1:80:80", "127.0.0.1:", "127.0.0.1 ", "2130706433", "localhost:x", "1" * 300, "\u0661"),
    ],
)
async def test_every_other_name_is_not(host: str) -> None:
    assert not is_own_host(host, NAMES)


async def test_names_are_given_with_commas() -> None:
    assert parse_host_names("") == frozenset()
    assert parse_host_names("a.example, B ,c_d") == {"a.example", "b", "c_d"}
    for wrong in ("a:5778", "*.example", "http://a", "a..b", "-/"):
        with pytest.raises(ValueError, match="received"):
            parse_host_names(wrong)


@pytest.mark.parametrize("path", READS)
async def test_a_page_that_has_bound_its_name_to_this_host_reads_nothing(
    remote: httpx.AsyncClient, app: FastAPI, path: str
) -> None:
    for headers in ({"Host": "evil.example:5778"}, {"Host": "evil.example", "Origin": "http://evil.example"}):
        answer = await remote.get(path, headers=headers)
        assert answer.status_code == 403
        assert "'evil.example" in answer.json()["detail"]
        assert "SPANDIAL_HOST_NAMES" in answer.json()["detail"]
    assert app.state.access.refused["host"] == 2


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:8080"},
        {"Origin": "ftp://127.0.0.1"},
        {"Origin": "http://127.0.0.1", "Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
    ids=str,
)
@pytest.mark.parametrize("who", ["remote", "local"])
async def test_a_page_of_another_origin_changes_nothing(
    request: pytest.FixtureRequest, node: FakeNode, app: FastAPI, headers: dict[str, str], who: str
) -> None:
    client: httpx.AsyncClient = request.getfixturevalue(who)
    authorization = {"Authorization": f"Bearer {TOKEN}"}
    before = len(node.applied)
    for method, path in (("POST", "/sampling?rate=1"), ("POST", "/SamplingTargets"), ("OPTIONS", "/sampling")):
        assert (await client.request(method, path, headers={**headers, **authorization})).status_code == 403
    assert len(node.applied) == before
    assert app.state.access.refused["origin"] == 3


async def test_where_a_token_is_missing_anyway_that_is_said(remote: httpx.AsyncClient, node: FakeNode) -> None:
    answer = await remote.put("/sampling?rate=1", headers={"Origin": "http://evil.example"})
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert len(node.applied) == 1


async def test_its_own_pages_may_use_it(remote: httpx.AsyncClient, local: httpx.AsyncClient) -> None:
    for client in (remote, local):
        for host in ("127.0.0.1:5778", "localhost", "[::1]:5778"):
            headers = {"Host": host, "Sec-Fetch-Site": "same-origin", "Authorization": f"Bearer {TOKEN}"}
            assert (await client.get("/docs", headers={"Host": host, "Sec-Fetch-Site": "none"})).status_code == 200
            assert (await client.get("/openapi.json", headers=headers)).status_code == 200
            own = {**headers, "Origin": f"http://{host}"}
            assert (await client.put("/sampling?rate=1", headers=own)).status_code == 200
            own["Origin"] = f"https://{host.upper()}"
            assert (await client.put("/sampling?rate=2", headers=own)).status_code == 200


async def test_over_the_unix_socket_a_host_matters_to_browsers_alone(local: httpx.AsyncClient) -> None:
    assert (await local.get("/targets", headers={"Host": "spandial"})).status_code == 200
    forwarded = {"Host": "evil.example", "Origin": "http://evil.example"}
    assert (await local.get("/targets", headers=forwarded)).status_code == 403


async def test_a_name_that_is_set_is_own(store: Store, node: FakeNode) -> None:
    access = access_of(store.path.parent)
    app = build_app(Control(store, node), node, access=access, version="0", host_names=["node-7.example"])
    async with client_of(app) as client:
        own = {"Host": "node-7.example:5778", "Origin": "https://node-7.example:5778"}
        assert (await client.get("/targets", headers=own)).status_code == 200
        assert (await client.get("/targets", headers={"Host": "node-8.example"})).status_code == 403
