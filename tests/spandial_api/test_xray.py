"""AWS X-Ray's centralized sampling: what the rules are in its shapes."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spandial.abi import EntryKind
from spandial.labels import Labels
from spandial_api.known import agreed_by_service, whole_per_second
from spandial_api.rules import Rule, RuleBook
from spandial_api.selectors import Selector
from spandial_api.xray import RULES_MAX, XRayRule, xray_rules
from tests.spandial_api import books


def rule(rate: float | None = None, *, target: float | None = None, **selector: Any) -> Rule:
    return Rule(Selector(**selector), rate, target=target)


def mapped(*rules: Rule, known: tuple[Labels, ...] = ()) -> list[XRayRule]:
    return xray_rules(RuleBook().change(rules), agreed_by_service(known), 5.0)


def first_match(rules: list[XRayRule], service: str, method: str, path: str) -> XRayRule:
    """What a client does with the rules."""
    return next(
        rule
        for rule in sorted(rules, key=lambda rule: rule.priority)
        if fnmatchcase(service, rule.service)
        and fnmatchcase(method, rule.method)
        and fnmatchcase(path, rule.path)
        and not rule.attributes
    )


def test_without_rules_everything_is_the_agents_default() -> None:
    assert mapped() == [XRayRule("Default", 10_000, "*", "*", "*", (), 0.05, 0)]


def test_the_nodes_default_is_its_default() -> None:
    assert mapped(rule(30)) == [XRayRule("Default", 10_000, "*", "*", "*", (), 0.3, 0)]


def test_what_wins_comes_first() -> None:
    rules = mapped(rule(1, service="shop*"), rule(100, service="shop", operation="GET /pay*"), rule(2, service="shop"))
    assert [(each.priority, each.service, each.method, each.path, each.rate) for each in rules] == [
        (1, "shop", "GET", "/pay*", 1.0),
        (2, "shop", "*", "*", 0.02),
        (3, "shop*", "*", "*", 0.01),
        (10_000, "*", "*", "*", 0.05),
    ]


def test_rules_are_named_as_people_write_them_if_that_is_short_enough() -> None:
    long = "GET /a/path/that/is/rather/long"
    names = [
        each.name for each in mapped(rule(1, service="shop"), rule(1, operation=long), rule(2, operation=long + "/2"))
    ]
    assert names[2:] == ["service=shop", "Default"]
    assert len(set(names)) == 4
    assert max(map(len, names)) <= 32


def test_a_throughput_is_a_reservoir_over_the_floor() -> None:
    found = mapped(rule(target=100, service="shop"))[0]
    assert (found.reservoir, found.rate) == (100, 0.00001)


def test_protocols_are_told_by_what_their_requests_have() -> None:
    http, grpc, _ = mapped(rule(1, protocol="http", service="a"), rule(1, protocol="grpc"))
    assert (http.method, http.attributes) == ("?*", ())
    assert (grpc.method, grpc.attributes) == ("*", (("rpc.system", "grpc"),))


@pytest.mark.parametrize(
    "selector",
    [
        {"protocol": "db"},
        {"protocol": "internal"},
        {"protocol": "grpc", "operation": "/pkg.Shop/Buy"},
        {"operation": "nightly report"},
        {"operation": "GET /[ab]"},
        {"env": "gray"},
        {"service": "[ab]*"},
    ],
)
def test_what_it_cannot_say_is_left_out(selector: dict[str, str]) -> None:
    assert [each.name for each in mapped(rule(1, **selector))] == ["Default"]


def test_a_rule_that_names_more_is_one_for_each_service_that_it_is_for_as_a_whole() -> None:
    known = (Labels("shop", env="gray"), Labels("bank", env="gray"), Labels("bank"), Labels("edge", env="gray"))
    rules = mapped(rule(100, env="gray"), known=known)
    assert [(each.service, each.rate) for each in rules] == [("edge", 1.0), ("shop", 1.0), ("*", 0.05)]
    assert mapped(rule(100, service="[es]*"), known=known)[0].service == "edge"


def test_a_service_whose_name_would_be_a_wildcard_is_left_out() -> None:
    assert len(mapped(rule(100, env="gray"), known=(Labels("sh*p", env="gray"),))) == 1


def test_there_are_only_so_many() -> None:
    rules = mapped(*(rule(1, service=f"s{number}") for number in range(RULES_MAX + 5)))
    assert len(rules) == RULES_MAX
    assert [each.priority for each in rules] == [*range(1, RULES_MAX), 10_000]
    assert len({each.name for each in rules}) == len(rules)


@given(
    books.books,
    st.lists(books.labels),
    books.services,
    st.sampled_from(["GET", "POST"]),
    st.sampled_from(["/pay", "/a", "/"]),
)
def test_a_client_does_what_the_rules_say(
    book: RuleBook, labels: list[Labels], service: str, method: str, path: str
) -> None:
    known = agreed_by_service(labels)
    rules = xray_rules(book, known, 5.0)
    assert len({each.name for each in rules}) == len(rules)
    assert all(0 <= each.rate <= 1 and type(each.reservoir) is int and len(each.name) <= 32 for each in rules)

    def is_for(rule: Rule) -> bool:
        selector, pattern = rule.selector, rule.selector.pattern
        asked = known.get(service, Labels(service))
        if service not in known and "[" in (selector.service or ""):
            return False
        operation = pattern is None or (
            pattern.path.startswith(("/", "*")) and "[" not in pattern.path and pattern.matches(method, path)
        )
        return operation and selector.matches(asked, EntryKind.HTTP)

    wanted = next((each for each in book if is_for(each)), None)
    got = first_match(rules, service, method, path)
    if wanted is None:
        assert (got.rate, got.reservoir) == (0.05, 0)
    elif wanted.target is not None:
        assert (got.rate, got.reservoir) == (pytest.approx(wanted.floor / 100), whole_per_second(wanted.target))
    else:
        assert (got.rate, got.reservoir) == (pytest.approx((wanted.rate or 0) / 100, abs=1e-12), 0)
