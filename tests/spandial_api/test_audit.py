"""Who changed what, and how it is undone."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st

from spandial_api.audit import Change, Entry, UndoConflict, changes_of, undoing
from spandial_api.rules import Rule, RuleBook
from spandial_api.selectors import Selector

pytestmark = pytest.mark.anyio

GRAY, BLUE = {"env": "gray"}, {"env": "blue"}

_selectors = st.sampled_from([Selector(), Selector(env="gray"), Selector(env="gray", protocol="http"), Selector("a")])
_rules = st.builds(Rule, _selectors, st.floats(0, 100), expires=st.none() | st.floats(1, 100))
_changes = st.builds(
    Change,
    st.just("batch"),
    st.lists(_rules, max_size=3, unique_by=lambda rule: rule.selector).map(tuple),
    st.lists(_selectors, max_size=2, unique=True).map(tuple),
)


def applied(change: Change, book: RuleBook) -> tuple[RuleBook, Entry]:
    put = [rule.selector for rule in change.put]
    gone = tuple(s for s in change.removed if s in book.rules and s not in put)
    change = change._replace(removed=gone)
    after = book.change(change.put, change.removed)
    return after, Entry(after.revision, 0, "", change.action, "", changes_of(change, book, after))


def says(book: RuleBook) -> set[tuple[object, ...]]:
    return {rule.says for rule in book}


@given(st.lists(_changes, min_size=1, max_size=5))
def test_undoing_the_latest_first_goes_back_through_every_book(changes: list[Change]) -> None:
    books, entries = [RuleBook()], []
    for change in changes:
        book, entry = applied(change, books[-1])
        books.append(book)
        entries.append(entry)
    current = books[-1]
    for before, entry in zip(reversed(books[:-1]), reversed(entries)):
        if entry.changes:
            # A rule that came back by an undo has a revision of its own: what is compared is what it says.
            matching = [
                changed._replace(after=current.rules.get(changed.selector) and current.rules[changed.selector])
                for changed in entry.changes
            ]
            undone = undoing(Entry(entry.revision, 0, "", "batch", "", tuple(matching)), current, now=0)
            current, _ = applied(undone, current)
        assert says(current) == says(before)


def test_a_rule_that_would_have_ended_does_not_come_back() -> None:
    book = RuleBook().put(Rule(Selector(env="gray"), 100, expires=50))
    after, entry = applied(Change("remove", (), (Selector(env="gray"),)), book)
    assert undoing(entry, after, now=49).put[0].rate == 100
    with pytest.raises(UndoConflict, match="have ended by themselves"):
        undoing(entry, after, now=50)


async def log(client: httpx.AsyncClient, **parameters: Any) -> list[dict[str, Any]]:
    answer = await client.get("/audit", params=parameters)
    assert answer.status_code == 200, answer.text
    entries: list[dict[str, Any]] = answer.json()["entries"]
    return entries


async def test_the_log_says_who_changed_what_when_and_why(local: httpx.AsyncClient, remote: httpx.AsyncClient) -> None:
    await local.put("/sampling", params={"rate": "30", **GRAY, "why": "release 4.2"})
    await local.put("/sampling", params={"rate": "50", **GRAY, "mode": "boost", "ttl": "10m"})
    await local.put("/sampling/renew", params={**GRAY, "ttl": "20m"})
    await local.delete("/sampling", params={**GRAY, "why": "done"})
    entries = await log(remote)
    assert [(e["revision"], e["action"], e["why"]) for e in entries] == [
        (4, "remove", "done"),
        (3, "renew", ""),
        (2, "put", ""),
        (1, "put", "release 4.2"),
    ]
    assert all(e["who"] and e["time"] > 1e9 for e in entries)
    [change] = entries[2]["changes"]
    assert (change["selector"], change["env"]) == ("env=gray", "gray")
    assert (change["before"]["rate"], change["before"]["mode"], change["before"]["revision"]) == (30, "follow", 1)
    assert (change["after"]["rate"], change["after"]["mode"], change["after"]["revision"]) == (50, "boost", 2)
    assert entries[0]["changes"][0]["after"] is None
    assert [e["revision"] for e in await log(remote, limit=2, before=4)] == [3, 2]


async def test_an_undone_revision_is_as_if_it_had_not_been(local: httpx.AsyncClient) -> None:
    await local.put("/sampling", params={"rate": "30", **GRAY})
    await local.put("/sampling", params={"rate": "50", **GRAY})
    await local.put("/sampling", params={"rate": "1", **BLUE})
    undone = await local.post("/sampling/undo", params={"revision": 2, "why": "wrong env"})
    assert undone.status_code == 200
    assert undone.headers["ETag"] == '"4"'
    assert (undone.json()["action"], undone.json()["why"]) == ("undo", "wrong env")
    rules = {rule["selector"]: rule["rate"] for rule in (await local.get("/sampling")).json()["rules"]}
    assert rules == {"env=gray": 30, "env=blue": 1}
    assert (await local.post("/sampling/undo", params={"revision": 3})).status_code == 200
    assert (await local.post("/sampling/undo", params={"revision": 4})).status_code == 200  # an undo can be undone
    rules = {rule["selector"]: rule["rate"] for rule in (await local.get("/sampling")).json()["rules"]}
    assert rules == {"env=gray": 50}


async def test_what_was_changed_since_is_not_undone(local: httpx.AsyncClient) -> None:
    await local.put("/sampling", params={"rate": "30", **GRAY})
    await local.put("/sampling", params={"rate": "50", **GRAY})
    refused = await local.post("/sampling/undo", params={"revision": 1})
    assert refused.status_code == 409
    assert "the rule for env=gray has revision 2 by now" in refused.json()["detail"]
    await local.delete("/sampling", params=GRAY)
    refused = await local.post("/sampling/undo", params={"revision": 2})
    assert "has been removed since" in refused.json()["detail"]
    missing = await local.post("/sampling/undo", params={"revision": 9})
    assert (missing.status_code, missing.json()["detail"]) == (
        404,
        "there is no revision 9 in the audit log, which goes from 1 to 3",
    )
    assert len(await log(local)) == 3


async def test_an_undo_is_a_write(remote: httpx.AsyncClient, local: httpx.AsyncClient, app: FastAPI) -> None:
    await local.put("/sampling", params={"rate": "30", **GRAY})
    assert (await remote.post("/sampling/undo", params={"revision": 1})).status_code == 401
    refused = await local.post("/sampling/undo", params={"revision": 1}, headers={"If-Match": '"7"'})
    assert refused.status_code == 412
    assert len(app.state.control.book.rules) == 1


async def test_a_changed_limit_is_in_the_log_and_no_rule_to_undo(local: httpx.AsyncClient) -> None:
    await local.put("/budget", params={"entries": "5000", "why": "black friday"})
    await local.put("/quotas", params={"tenant": "acme", "entries": "50"})
    await local.put("/quotas", params={"tenant": "acme", "entries": "60"})
    await local.delete("/quotas", params={"tenant": "acme"})
    entries = await log(local)
    assert [(e["revision"], e["action"], e["changes"], e["limit"]) for e in entries] == [
        (4, "quota", [], {"tenant": "acme", "before": 60, "after": None}),
        (3, "quota", [], {"tenant": "acme", "before": 50, "after": 60}),
        (2, "quota", [], {"tenant": "acme", "before": None, "after": 50}),
        (1, "budget", [], {"tenant": None, "before": None, "after": 5000}),
    ]
    assert entries[-1]["why"] == "black friday"
    refused = await local.post("/sampling/undo", params={"revision": 3})
    assert (refused.status_code, "revision 3 changed a quota" in refused.json()["detail"]) == (409, True)


async def test_the_etag_of_an_answer_is_that_of_its_own_change(local: httpx.AsyncClient, app: FastAPI) -> None:
    answers = await asyncio.gather(
        *(local.put("/sampling", params={"rate": str(number), "service": f"s{number}"}) for number in range(20))
    )
    assert [answer.headers["ETag"] for answer in answers] == [f'"{answer.json()["revision"]}"' for answer in answers]
    assert len({answer.headers["ETag"] for answer in answers}) == 20
