"""Selectors by operation, tenant and label: in the book, and in requests."""

from __future__ import annotations

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spandial.abi import EntryKind
from spandial.labels import Labels
from spandial_api.rules import Rule, RuleBook
from spandial_api.selectors import PROTOCOLS, Selector

PAY = Labels("checkout", "v1", "gray", "acme", (("region", "eu-1"), ("team", "pay")))

_texts = st.sampled_from([None, "a", "b", "a*", "*"])
_labels = st.dictionaries(st.sampled_from("xy"), st.sampled_from(["a", "b", "a*"])).map(
    lambda d: tuple(sorted(d.items()))
)
_operations = st.sampled_from([None, None, "GET /a*", "/a", "job"])
_selectors = st.builds(
    Selector, _texts, _texts, _texts, st.sampled_from([None, *PROTOCOLS]), _operations, _texts, _labels
)
_names = st.sampled_from(["", "a", "b", "ab"])
_others = st.dictionaries(st.sampled_from("xy"), st.sampled_from(["a", "b", "ab"])).map(
    lambda d: tuple(sorted(d.items()))
)
_processes = st.builds(Labels, _names, _names, _names, _names, _others)
_steps = st.lists(
    st.lists(st.tuples(_selectors, st.booleans()), max_size=4, unique_by=lambda step: step[0]), max_size=9
)


def test_tenants_and_labels_are_globs_too() -> None:
    for selector in (Selector(tenant="acme"), Selector(tenant="a*"), Selector(labels=(("team", "p?y"),))):
        assert selector.matches_labels(PAY)
    for selector in (
        Selector(tenant="b*"),
        Selector(labels=(("team", "pay"), ("zone", "*x"))),
        Selector(tenant="Acme"),
    ):
        assert not selector.matches_labels(PAY)
    assert Selector(labels=(("zone", "*"),)).matches_labels(PAY)  # as with service: an absent label is an empty text


@given(_steps, _processes, st.sampled_from(EntryKind))
def test_the_book_finds_what_looking_at_every_rule_finds(
    steps: list[list[tuple[Selector, bool]]], labels: Labels, kind: EntryKind
) -> None:
    book = RuleBook()
    for batch in steps:
        removed = [selector for selector, put in batch if not put and selector in book.rules]
        book = book.change([Rule(selector, 50) for selector, _ in batch if selector not in removed], removed)
    ordered = sorted(book.rules.values(), key=lambda rule: rule.order, reverse=True)
    assert list(book) == ordered
    plain = [r for r in ordered if r.selector.operation is None and r.selector.matches(labels, kind)]
    assert book.resolve(labels, kind) == (plain[0] if plain else None)
    by_operation = [r for r in ordered if r.selector.operation is not None and r.selector.matches_labels(labels)]
    assert book.operations(labels) == by_operation
    assert book == RuleBook.of(book.rules.values(), book.revision)
    assert RuleBook.of(book.rules.values(), book.revision).resolve(labels, kind) == book.resolve(labels, kind)


def test_a_rule_by_operation_wins_over_any_without() -> None:
    precise = Selector("checkout", "v1", "gray", "http", tenant="acme", labels=(("team", "pay"),))
    assert Selector(operation="*").specificity > precise.specificity
    assert Selector(operation="GET /pay*").specificity > Selector(operation="/p*").specificity
    assert Selector("checkout", operation="/p*").specificity > Selector(operation="GET /pay").specificity


def test_which_rule_wins_for_an_operation_is_explained() -> None:
    book = RuleBook().put(Rule(Selector(), 1)).put(Rule(Selector(operation="GET /pay*"), 100))
    book = book.put(Rule(Selector(operation="/health", protocol="http"), 0))
    findings = {f.rule.selector.operation: (f.wins, f.why) for f in book.explain(PAY, "GET /pay/42")}
    assert findings == {
        "GET /pay*": (("internal", "http", "grpc", "db"), ""),
        "/health": ((), "the operation is 'GET /pay/42', which '/health' does not match"),
        None: ((), 'more specific: operation="GET /pay*"'),
    }
    findings = {f.rule.selector.operation: (f.wins, f.why) for f in book.explain(PAY)}
    assert findings["/health"] == (("http",), "for operations that match '/health' only")
    assert findings[None] == (("internal", "http", "grpc", "db"), "")


@pytest.mark.anyio
async def test_every_field_of_a_selector_is_a_parameter(local: httpx.AsyncClient) -> None:
    named = {"service": "checkout", "tenant": "ac*", "operation": "GET /pay*", "label.team": "pay", "label.zone": "b*"}
    answer = await local.put("/sampling", params={"rate": "30", **named})
    assert answer.status_code == 200, answer.text
    state = answer.json()
    assert state["selector"] == 'service=checkout tenant=ac* label.team=pay label.zone=b* operation="GET /pay*"'
    assert (state["tenant"], state["labels"], state["operation"]) == ("ac*", {"team": "pay", "zone": "b*"}, "GET /pay*")
    assert state["in_kernel"]
    assert (await local.put("/sampling", params={"rate": "30", "operation": "*.json"})).json()["in_kernel"] is False
    assert (await local.put("/sampling", params={"rate": "30", "operation": "GET *"})).json()["in_kernel"]
    assert (await local.delete("/sampling", params={"service": "checkout"})).status_code == 404
    assert (await local.delete("/sampling", params=named)).json()["removed"] == state["selector"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"label.": "x"}, "label."),
        ({"label.team": ""}, "label.team"),
        ({f"label.l{number}": "x" for number in range(17)}, "label.*"),
        ({"operation": " "}, "operation"),
        ({"operation": "a\x00b"}, "operation"),
        ({"label": "x"}, "label"),
        ({"target": "0"}, "target"),
        ({"target": "7"}, "rate"),
    ],
)
async def test_a_field_that_cannot_be_is_named(
    local: httpx.AsyncClient, parameters: dict[str, str], field: str
) -> None:
    answer = await local.put("/sampling", params={"rate": "30", **parameters})
    assert answer.status_code == 422
    assert field in [problem["field"] for problem in answer.json()["detail"]]


@pytest.mark.anyio
async def test_a_put_that_changes_nothing_makes_no_revision(local: httpx.AsyncClient) -> None:
    first = await local.put("/sampling", params={"rate": "30", "env": "gray"})
    again = await local.put("/sampling", params={"rate": "30.0 %", "env": "gray", "why": "retried"})
    assert (again.json(), again.headers["ETag"]) == (first.json(), first.headers["ETag"])
    lost = await local.put("/sampling", params={"rate": "30", "env": "gray"}, headers={"If-Match": '"0"'})
    assert (lost.status_code, lost.headers["ETag"]) == (200, '"1"')
    assert len((await local.get("/audit")).json()["entries"]) == 1
    for changed in ({"mode": "boost"}, {"ttl": "10m"}):
        await local.put("/sampling", params={"rate": "30", "env": "gray", **changed})
    assert (await local.get("/sampling")).json()["revision"] == 3
