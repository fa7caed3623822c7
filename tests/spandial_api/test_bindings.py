"""What a token may touch."""

from __future__ import annotations

from fnmatch import translate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spandial.abi import EntryKind
from spandial.labels import Labels
from spandial_api.bindings import EVERYTHING, binding_fields, covers, parse_binding
from spandial_api.selectors import PROTOCOLS, Selector


def service(text: str) -> Selector:
    return Selector(service=text)


def operation(text: str) -> Selector:
    return Selector(operation=text)


@pytest.mark.parametrize(
    ("bound", "asked"),
    [
        (EVERYTHING, EVERYTHING),
        (EVERYTHING, Selector("shop", "2", "gray", "http", "GET /pay", "acme", (("team", "x"),))),
        (service("checkout"), service("checkout")),
        (service("checkout"), Selector("checkout", "2", "gray", "http", "GET /pay", "acme", (("team", "x"),))),
        (service("pay-*"), service("pay-*")),
        (service("pay-*"), service("pay-a")),
        (service("pay-*"), service("pay-a*")),
        (service("pay-*"), service("pay-[ab]?*")),
        (service("*-gray"), service("[ab]*-gray")),
        (service("a*z"), service("ab?yz")),
        (service("*"), service("?")),
        (service("v[12]"), service("v1")),
        (service("v[12]"), service("v[12]")),
        (Selector(protocol="db"), Selector("shop", protocol="db")),
        (operation("GET /pay*"), operation("GET /pay/1")),
        (operation("GET /pay*"), operation("GET /pay/*")),
        (operation("/pay*"), operation("GET /pay/*")),
        (Selector(labels=(("team", "pay*"),)), Selector(labels=(("region", "eu"), ("team", "payments")))),
    ],
)
def test_what_a_binding_covers(bound: Selector, asked: Selector) -> None:
    assert covers(bound, asked)


@pytest.mark.parametrize(
    ("bound", "asked"),
    [
        (service("checkout"), EVERYTHING),
        (service("checkout"), Selector(env="gray")),
        (service("checkout"), service("checkout2")),
        (service("checkout"), service("checkout*")),
        (service("checkout"), service("*")),
        (service("pay-*"), service("pay*")),
        (service("pay-*"), service("p[a]y-1*")),
        (service("*"), EVERYTHING),
        (service("a*a"), service("a")),
        (service("v[12]"), service("v?")),
        (service("v?*"), service("v12*")),  # so it is, but not plainly
        (Selector(protocol="db"), service("shop")),
        (Selector(protocol="db"), Selector(protocol="http")),
        (operation("GET /pay*"), operation("/pay*")),
        (operation("GET /pay*"), operation("POST /pay")),
        (operation("GET /pay*"), EVERYTHING),
        (Selector(labels=(("team", "pay*"),)), EVERYTHING),
        (Selector(labels=(("team", "pay*"),)), Selector(labels=(("region", "pay"),))),
        (Selector("shop", env="gray"), service("shop")),
    ],
)
def test_what_a_binding_does_not_cover(bound: Selector, asked: Selector) -> None:
    assert not covers(bound, asked)


_text = st.text("ab-", max_size=4)
_globs = st.text("ab-*?[]!", min_size=1, max_size=5)
_maybe = st.none() | _globs
_operations = st.builds(
    lambda method, path: f"{method} /{path}" if method else f"/{path}", st.sampled_from(["", "GET", "PUT"]), _globs
)
_selectors = st.builds(
    Selector,
    service=_maybe,
    version=_maybe,
    env=_maybe,
    tenant=_maybe,
    protocol=st.none() | st.sampled_from([*PROTOCOLS]),
    operation=st.none() | _operations,
    labels=st.dictionaries(st.sampled_from(["team", "zone"]), _globs).map(lambda found: tuple(sorted(found.items()))),
)
_processes = st.builds(
    Labels,
    _text,
    _text,
    _text,
    _text,
    st.dictionaries(st.sampled_from(["team", "zone"]), _text).map(lambda found: tuple(sorted(found.items()))),
)


def reaches(selector: Selector, labels: Labels, kind: EntryKind, method: str, path: str) -> bool:
    return selector.matches(labels, kind) and (selector.pattern is None or selector.pattern.matches(method, path))


@st.composite
def _narrowed(draw: st.DrawFn, bound: str | None) -> str | None:
    """A glob that may well be inside of another."""
    if bound is None:
        return draw(_maybe)
    return draw(st.sampled_from([bound, bound.replace("*", draw(_globs)), bound.replace("?", draw(_globs))]) | _maybe)


@st.composite
def _pairs(draw: st.DrawFn) -> tuple[Selector, Selector]:
    bound = draw(_selectors)
    asked = Selector(
        service=draw(_narrowed(bound.service)),
        version=draw(_narrowed(bound.version)),
        env=draw(_narrowed(bound.env)),
        tenant=draw(_narrowed(bound.tenant)),
        protocol=draw(st.sampled_from([bound.protocol, None, "http"])),
        operation=draw(_narrowed(bound.operation)),
        labels=draw(st.just(bound.labels) | _selectors.map(lambda other: other.labels)),
    )
    return bound, asked


@settings(max_examples=400)
@given(_pairs(), _processes, st.sampled_from([*EntryKind]), st.sampled_from(["", "GET", "PUT"]), _text)
def test_a_covered_selector_reaches_nothing_outside_of_the_binding(
    pair: tuple[Selector, Selector], labels: Labels, kind: EntryKind, method: str, path: str
) -> None:
    bound, asked = pair
    if covers(bound, asked) and reaches(asked, labels, kind, method, "/" + path):
        assert reaches(bound, labels, kind, method, "/" + path)


@settings(max_examples=1000)
@given(st.data(), st.text("ab-", max_size=6))
def test_a_covered_glob_matches_nothing_that_the_other_does_not(data: st.DataObject, value: str) -> None:
    import re

    outer = data.draw(_globs)
    inner = data.draw(_narrowed(outer))
    assert inner is None or isinstance(inner, str)
    if inner and covers(service(outer), service(inner)) and re.match(translate(inner), value):
        assert service(outer).matches_labels(Labels(value))


@given(_selectors)
def test_a_binding_is_written_and_read_as_it_was(binding: Selector) -> None:
    assert parse_binding(binding_fields(binding)) == binding


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"servce": "x"}, "a binding names operation, .*label.NAME; received 'servce'"),
        ({"label.": "x"}, "received 'label.'"),
        ({"service": ""}, "service is a glob of 1 to 255 printable characters; received ''"),
        ({"service": "x" * 256}, "service is a glob"),
        ({"label.team": "a\nb"}, r"label.team is a glob .*received 'a\\nb'"),
        ({"protocol": "smtp"}, "protocol is one of internal, http, grpc, db; received 'smtp'"),
        ({"operation": "   "}, "an operation is a glob"),
    ],
)
def test_what_is_no_binding(fields: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_binding(fields)
