"""PUT, DELETE and GET /sampling."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st

from spandial.abi import Mode
from spandial.labels import Labels
from spandial_api.app import build_app
from spandial_api.auth import Access, TrustedListener
from spandial_api.control import Control
from spandial_api.rules import RuleBook
from spandial_api.selectors import Selector
from spandial_api.store import Store, StoreError
from spandial_api.token_file import TokenFile
from tests.spandial_api.conftest import access_of, client_of
from tests.spandial_api.fake_node import FakeNode

pytestmark = pytest.mark.anyio


class FullStore(Store):
    """A store that finds no room while it is told so."""

    full = True

    def prepare(self, book: RuleBook) -> None:
        if self.full:
            raise StoreError(f"the rules in {self.path} cannot be written: database or disk is full")
        super().prepare(book)


async def test_put_answers_with_the_rule_as_it_is_in_force(local: httpx.AsyncClient, node: FakeNode) -> None:
    node.processes = [Labels("checkout", "v1", "gray"), Labels("cart", "v1", "gray"), Labels("cart", "v1", "blue")]
    answer = await local.put("/sampling", params={"rate": "30", "env": "gray", "version": "v*", "mode": "boost"})
    assert answer.status_code == 200
    assert answer.json() == {
        "selector": "version=v* env=gray",
        "service": None,
        "version": "v*",
        "env": "gray",
        "tenant": None,
        "labels": {},
        "protocol": None,
        "operation": None,
        "rate": 30.0,
        "target": None,
        "floor": None,
        "mode": "boost",
        "revision": 1,
        "expires": None,
        "in_kernel": True,
        "reached": 2,
    }


@pytest.mark.parametrize(
    ("text", "rate"),
    [("30", 30), ("0.1", 0.1), ("30%", 30), (" 30 % ", 30), ("0", 0), ("100", 100), ("100.0%", 100), ("1e-3", 0.001)],
)
async def test_a_rate_is_a_percentage(local: httpx.AsyncClient, node: FakeNode, text: str, rate: float) -> None:
    answer = await local.put("/sampling", params={"rate": text})
    assert answer.json()["rate"] == rate
    assert node.applied[-1].rules[Selector()].rate == rate


@pytest.mark.parametrize(
    "text", ["", "-1", "100.1", "101%", "thirty", "3,5", "nan", "inf", "1e999", "30%%", "%", "0x10", "1_0", "30 40"]
)
async def test_another_rate_is_refused(local: httpx.AsyncClient, node: FakeNode, text: str) -> None:
    answer = await local.put("/sampling", params={"rate": text})
    assert answer.status_code == 422
    [problem] = answer.json()["detail"]
    assert (problem["field"], problem["received"]) == ("rate", text)
    assert "percentage from 0 to 100" in problem["allowed"]
    assert node.applied == [RuleBook()]


@pytest.mark.parametrize(
    ("parameter", "text", "allowed"),
    [
        ("mode", "BOOST", "'follow', 'boost' or 'strict'"),
        ("protocol", "tcp", "'internal', 'http', 'grpc' or 'db'"),
        ("service", "", "at least 1 character"),
        ("env", "x" * 256, "at most 255 characters"),
        ("pid", "7", "service, env, version, tenant, protocol, operation, target, rate"),
    ],
)
async def test_a_parameter_that_cannot_be_obeyed_is_refused_with_what_can(
    local: httpx.AsyncClient, node: FakeNode, parameter: str, text: str, allowed: str
) -> None:
    answer = await local.put("/sampling", params={"rate": "30", parameter: text})
    assert answer.status_code == 422
    [problem] = answer.json()["detail"]
    assert (problem["field"], problem["received"]) == (parameter, text)
    assert allowed in problem["allowed"]
    assert node.applied == [RuleBook()]


async def test_all_wrong_parameters_are_named_at_once(local: httpx.AsyncClient) -> None:
    answer = await local.put("/sampling", params={"rate": "x", "mode": "y", "protocol": "z"})
    assert [problem["field"] for problem in answer.json()["detail"]] == ["protocol", "rate", "mode"]


@pytest.mark.parametrize("path", ["/sampling", "/entries", "/targets", "/stats", "/healthz"])
async def test_no_route_takes_an_unknown_parameter(local: httpx.AsyncClient, path: str) -> None:
    answer = await local.get(path, params={"tenant": "acme"})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["field"] == "tenant"


async def test_a_parameter_given_twice_is_refused_and_nothing_is_applied(local: httpx.AsyncClient) -> None:
    answer = await local.put("/sampling", params=[("rate", "1"), ("rate", "2")])
    assert answer.status_code == 422
    assert answer.json()["detail"] == [{"field": "rate", "received": ["1", "2"], "allowed": "one value"}]
    assert (await local.get("/sampling")).json()["rules"] == []


async def test_a_missing_rate_is_named(local: httpx.AsyncClient) -> None:
    answer = await local.put("/sampling", params={"env": "gray"})
    assert answer.status_code == 422
    assert answer.json()["detail"] == [
        {"field": "rate", "received": None, "allowed": "a rate, such as 30; or target=100 in its place"}
    ]


@pytest.mark.parametrize(
    ("method", "parameters", "allowed"),
    [
        ("DELETE", {"rate": "30"}, "service, env, version, tenant, protocol, operation, why, label.*"),
        ("GET", {"tenant": "acme"}, "none"),
    ],
)
async def test_the_allowed_parameters_are_those_of_the_method(
    local: httpx.AsyncClient, method: str, parameters: dict[str, str], allowed: str
) -> None:
    answer = await local.request(method, "/sampling", params=parameters)
    assert answer.status_code == 422
    [problem] = answer.json()["detail"]
    assert problem["allowed"] == f"no such parameter; there are: {allowed}"


async def test_putting_a_selector_again_replaces_its_rule(local: httpx.AsyncClient, node: FakeNode) -> None:
    await local.put("/sampling", params={"rate": "30", "env": "gray"})
    answer = await local.put("/sampling", params={"rate": "5", "env": "gray", "mode": "strict"})
    assert answer.json()["revision"] == 2
    [rule] = node.applied[-1]
    assert (rule.rate, rule.mode) == (5.0, Mode.STRICT)


async def test_a_target_is_for_whole_services(local: httpx.AsyncClient, node: FakeNode) -> None:
    answer = await local.put("/sampling", params={"target": "100", "operation": "GET /pay"})
    assert answer.status_code == 422
    [problem] = answer.json()["detail"]
    assert problem["field"] == "target"
    assert "nobody counts the entries of one operation alone" in problem["allowed"]
    assert len(node.applied[-1].rules) == 0


async def test_a_target_is_reached_by_the_rule_that_wins_for_any_of_its_kinds(
    local: httpx.AsyncClient, node: FakeNode
) -> None:
    node.processes = [Labels("checkout", "", "gray"), Labels("cart", "", "gray")]

    async def reached(**parameters: str) -> int:
        return int((await local.put("/sampling", params={"rate": "1", **parameters})).json()["reached"])

    assert await reached() == 2
    assert await reached(service="checkout", protocol="db") == 1
    assert await reached(service="search") == 0
    assert await reached(env="gray") == 2
    listed = {rule["selector"]: rule["reached"] for rule in (await local.get("/sampling")).json()["rules"]}
    assert listed == {"service=checkout protocol=db": 1, "service=search": 0, "env=gray": 2, "default": 0}


async def test_get_lists_the_rules_that_win_first(local: httpx.AsyncClient) -> None:
    for selector in ({}, {"env": "gray"}, {"service": "*"}, {"service": "checkout", "env": "*"}):
        await local.put("/sampling", params={"rate": "1", **selector})
    answer = (await local.get("/sampling")).json()
    assert answer["revision"] == 4
    selectors = [rule["selector"] for rule in answer["rules"]]
    assert selectors == ["service=checkout env=*", "env=gray", "service=*", "default"]


async def test_delete_removes_the_rule_of_exactly_this_selector(local: httpx.AsyncClient, node: FakeNode) -> None:
    for selector in ({"env": "gray"}, {"env": "gray", "protocol": "http"}):
        await local.put("/sampling", params={"rate": "1", **selector})
    answer = await local.delete("/sampling", params={"env": "gray"})
    assert answer.json() == {"removed": "env=gray", "revision": 3}
    assert list(node.applied[-1].rules) == [Selector(env="gray", protocol="http")]


async def test_delete_of_an_unknown_rule_is_not_found(local: httpx.AsyncClient, node: FakeNode) -> None:
    answer = await local.delete("/sampling", params={"env": "gray"})
    assert answer.status_code == 404
    assert answer.json()["detail"] == "there is no rule for env=gray; GET /sampling lists them"
    assert node.applied == [RuleBook()]


async def test_the_node_obeys_before_the_answer_and_the_disk_has_it_before_the_node(
    local: httpx.AsyncClient, node: FakeNode, store: Store
) -> None:
    stored: list[RuleBook] = []
    node.on_apply = lambda book: stored.append(store.load())
    for rate in (1, 2):
        answer = await local.put("/sampling", params={"rate": rate})
        assert node.applied[-1].revision == answer.json()["revision"]
        assert stored[-1] == node.applied[-1]
    answer = await local.delete("/sampling")
    assert node.applied[-1] == stored[-1] == RuleBook({}, answer.json()["revision"])


async def test_when_the_rules_cannot_be_stored_nothing_changes(
    make_app: Callable[[Store], FastAPI], node: FakeNode, store: Store
) -> None:
    full = FullStore(store.path)
    local = client_of(TrustedListener(make_app(full)))
    answers = [await local.put("/sampling", params={"rate": "30"}), await local.put("/sampling", params={"rate": "5"})]
    for answer in answers:
        assert answer.status_code == 503
        assert str(store.path) in answer.json()["detail"]
        assert "nothing was changed" in answer.json()["detail"]
    assert node.applied == [RuleBook()]
    assert (await local.get("/sampling")).json() == {"revision": 0, "rules": []}

    full.full = False
    assert (await local.put("/sampling", params={"rate": "30"})).json()["revision"] == 1
    full.close()


async def test_concurrent_changes_get_revisions_of_their_own_and_none_is_lost(
    local: httpx.AsyncClient, node: FakeNode, store: Store
) -> None:
    puts = [local.put("/sampling", params={"rate": "1", "service": f"service{number}"}) for number in range(40)]
    revisions = [answer.json()["revision"] for answer in await asyncio.gather(*puts)]
    assert sorted(revisions) == list(range(1, 41))
    assert len(node.applied[-1].rules) == len(store.load().rules) == 40
    assert [book.revision for book in node.applied] == list(range(41))


async def test_a_restarted_control_plane_has_the_rules(local: httpx.AsyncClient, store: Store) -> None:
    await local.put("/sampling", params={"rate": "30", "env": "gray"})
    node = FakeNode()
    restarted = build_app(Control(store, node), node, access=access_of(store.path.parent), version="0")
    assert [rule.rate for rule in node.applied[-1]] == [30.0]
    before, after = [(await client.get("/sampling")).json() for client in (local, client_of(restarted))]
    assert before == after


_junk = st.dictionaries(
    st.sampled_from(["rate", "service", "env", "version", "protocol", "mode", "tenant"]), st.text(max_size=10)
)


@given(st.lists(st.tuples(st.sampled_from(["PUT", "DELETE", "GET"]), _junk), max_size=5))
def test_no_parameters_make_the_control_plane_fail(requests: list[tuple[str, dict[str, Any]]]) -> None:
    async def send() -> list[int]:
        store, node = Store(Path(":memory:")), FakeNode()
        app = build_app(Control(store, node), node, access=Access(TokenFile(Path("/nonexistent"))), version="0")
        local = client_of(TrustedListener(app))
        return [(await local.request(method, "/sampling", params=given)).status_code for method, given in requests]

    assert set(asyncio.run(send())) <= {200, 400, 404, 422}


async def test_a_rule_with_a_ttl_says_when_it_ends(local: httpx.AsyncClient) -> None:
    before = time.time()
    put = (await local.put("/sampling", params={"rate": "100", "env": "gray", "ttl": "10m"})).json()
    assert before + 600 <= put["expires"] <= time.time() + 600
    assert (await local.get("/sampling")).json()["rules"] == [put]
    renewed = (await local.put("/sampling/renew", params={"env": "gray", "ttl": "1h30m"})).json()
    assert before + 5400 <= renewed["expires"] <= time.time() + 5400
    assert (renewed["rate"], renewed["revision"]) == (100, 2)
    assert (await local.put("/sampling", params={"rate": "100", "env": "gray"})).json()["expires"] is None


async def test_only_a_rule_can_be_renewed(local: httpx.AsyncClient, remote: httpx.AsyncClient) -> None:
    answer = await local.put("/sampling/renew", params={"env": "gray", "ttl": "10m"})
    assert (answer.status_code, answer.json()["detail"]) == (
        404,
        "there is no rule for env=gray; GET /sampling lists them",
    )
    assert (await remote.put("/sampling/renew", params={"env": "gray", "ttl": "10m"})).status_code == 401


@pytest.mark.parametrize("path", ["/sampling", "/sampling/renew"])
@pytest.mark.parametrize("ttl", ["", "0s", "10", "-1m", "1w", "9999d", "10m5", "1m1h", "nan"])
async def test_another_ttl_is_refused(local: httpx.AsyncClient, node: FakeNode, path: str, ttl: str) -> None:
    rate = {"rate": "30"} if path == "/sampling" else {}
    answer = await local.put(path, params={**rate, "ttl": ttl})
    assert answer.status_code == 422
    [problem] = answer.json()["detail"]
    assert (problem["field"], problem["received"]) == ("ttl", ttl)
    assert "such as 90s, 10m or 1h30m" in problem["allowed"]
    assert node.applied == [RuleBook()]


async def test_a_great_rate_without_an_end_can_be_refused(store: Store, node: FakeNode) -> None:
    app = build_app(
        Control(store, node), node, access=access_of(store.path.parent), version="0", max_rate_without_ttl=50
    )
    async with client_of(TrustedListener(app)) as client:
        answer = await client.put("/sampling", params={"rate": "50.1", "env": "gray"})
        assert answer.status_code == 422
        [problem] = answer.json()["detail"]
        assert problem["field"] == "ttl"
        assert problem["allowed"].startswith("a rate above 50 % needs a ttl")
        assert node.applied == [RuleBook()]
        for parameters in ({"rate": "50"}, {"rate": "100", "ttl": "1d"}):
            assert (await client.put("/sampling", params=parameters)).is_success


async def test_a_change_that_was_meant_for_other_rules_changes_nothing(
    local: httpx.AsyncClient, node: FakeNode
) -> None:
    first = await local.put("/sampling", params={"rate": "30", "env": "gray"}, headers={"If-Match": '"0"'})
    assert (first.status_code, first.headers["ETag"]) == (200, '"1"')
    rules = await local.get("/sampling")
    assert rules.headers["ETag"] == '"1"'
    await local.put("/sampling", params={"rate": "1"})
    stale = {"If-Match": rules.headers["ETag"]}
    for answer in (
        await local.put("/sampling", params={"rate": "100", "env": "gray"}, headers=stale),
        await local.put("/sampling/renew", params={"ttl": "1m", "env": "gray"}, headers=stale),
        await local.delete("/sampling", params={"env": "gray"}, headers=stale),
        await local.delete("/sampling", params={"env": "gray"}, headers={"If-Match": 'W/"2", nonsense'}),
        await local.delete("/sampling", params={"env": "gray"}, headers={"If-Match": ""}),
    ):
        assert (answer.status_code, answer.headers["ETag"]) == (412, '"2"')
        assert "revision 2" in answer.json()["detail"]
        assert answer.json()["current"] == (await local.get("/sampling")).json()
    assert [book.revision for book in node.applied] == [0, 1, 2]
    removed = await local.delete("/sampling", params={"env": "gray"}, headers={"If-Match": '"1", "2"'})
    assert (removed.status_code, removed.headers["ETag"]) == (200, '"3"')
    assert (await local.put("/sampling", params={"rate": "5"}, headers={"If-Match": "*"})).status_code == 200


async def test_of_many_who_start_from_the_same_rules_one_wins(local: httpx.AsyncClient) -> None:
    answers = await asyncio.gather(
        *(local.put("/sampling", params={"rate": str(n)}, headers={"If-Match": '"0"'}) for n in range(20))
    )
    assert sorted(answer.status_code for answer in answers) == [200] + [412] * 19
    [won] = [answer.json() for answer in answers if answer.status_code == 200]
    assert (await local.get("/sampling")).json()["rules"] == [won]


async def test_who_cannot_put_may_post(local: httpx.AsyncClient, remote: httpx.AsyncClient) -> None:
    put = (await local.post("/sampling", params={"rate": "30", "env": "gray", "ttl": "1m"})).json()
    renewed = (await local.post("/sampling/renew", params={"env": "gray", "ttl": "1h"})).json()
    assert (put["rate"], put["revision"], renewed["rate"], renewed["revision"]) == (30, 1, 30, 2)
    assert (await remote.post("/sampling", params={"rate": "30"})).status_code == 401


async def test_which_rule_wins_is_explained(remote: httpx.AsyncClient, local: httpx.AsyncClient) -> None:
    await local.put("/sampling", params={"rate": "100", "env": "gray", "protocol": "http"})
    await local.put("/sampling", params={"rate": "5", "service": "cart"})
    answer = await remote.get("/sampling/explain", params={"service": "checkout", "env": "gray"})
    assert answer.json() == {
        "service": "checkout",
        "version": "",
        "env": "gray",
        "tenant": "",
        "labels": {},
        "operation": None,
        "default": ["internal", "grpc", "db"],
        "rules": [
            {
                "selector": "env=gray protocol=http",
                "rate": 100,
                "target": None,
                "mode": "follow",
                "wins": ["http"],
                "why": "",
            },
            {
                "selector": "service=cart",
                "rate": 5,
                "target": None,
                "mode": "follow",
                "wins": [],
                "why": "service is 'checkout', which 'cart' does not match",
            },
        ],
    }
    assert (await remote.get("/sampling/explain", params={"pid": "1"})).status_code == 422
