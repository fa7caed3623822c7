"""What is known of a service by its name alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spandial.abi import EntryKind
from spandial.labels import Labels
from spandial_api.known import agreed, agreed_by_service, reduced, selected_by, whole_per_second
from spandial_api.rules import RuleBook
from spandial_api.selectors import Selector
from tests.spandial_api import books

GRAY = Labels("shop", "2", "gray", others=(("team", "pay"), ("zone", "a")))
STABLE = Labels("shop", "2", "stable", others=(("zone", "a"),))
BANK = Labels("bank", "7", "gray")
SHOP = Labels("shop")


def test_of_a_service_that_nobody_has_only_the_name_is_known() -> None:
    assert agreed([BANK], SHOP) == SHOP
    assert agreed([], SHOP) == SHOP


def test_of_one_process_all_is_known() -> None:
    assert agreed([BANK, GRAY], SHOP) == GRAY


def test_of_several_it_is_what_they_agree_on() -> None:
    assert agreed([GRAY, BANK, STABLE], SHOP) == Labels("shop", "2", "", others=(("zone", "a"),))


def test_who_says_more_of_itself_is_told_apart() -> None:
    assert agreed([GRAY, BANK, STABLE], Labels("shop", env="gray")) == GRAY
    assert agreed([STABLE], Labels("shop", env="gray")) == Labels("shop", env="gray")


@given(st.lists(books.labels))
def test_for_all_services_at_once_it_is_the_same(labels: list[Labels]) -> None:
    known = agreed_by_service(labels)
    assert known == {each.service: agreed(labels, Labels(each.service)) for each in labels}


@given(st.lists(books.labels), books.services)
def test_nothing_is_known_that_is_not_true_of_all(labels: list[Labels], service: str) -> None:
    known = agreed(labels, Labels(service))
    for each in labels:
        if each.service == service:
            assert all(value in ("", theirs) for value, theirs in zip(known[:4], each[:4]))
            assert set(known.others) <= set(each.others)


@pytest.mark.parametrize(
    ("target", "whole"),
    [(0, 0), (1e-9, 1), (0.4, 1), (1, 1), (1.4, 1), (1.5, 2), (2.5, 3), (100, 100), (1e12, (1 << 31) - 1)],
)
def test_some_a_second_never_become_none(target: float, whole: int) -> None:
    assert whole_per_second(target) == whole


def test_what_no_rule_looks_at_tells_nobody_apart() -> None:
    selectors = [Selector(service="shop", env="gray"), Selector(labels=(("team", "pay"),)), Selector(operation="GET /")]
    names = selected_by(selectors)
    assert names == {"env", "label.team"}
    assert reduced(GRAY, names) == Labels("shop", env="gray", others=(("team", "pay"),))
    assert reduced(GRAY, frozenset()) == SHOP


@given(books.books, books.labels, st.sampled_from(EntryKind))
def test_without_them_the_rules_are_the_same(book: RuleBook, labels: Labels, kind: EntryKind) -> None:
    less = reduced(labels, selected_by(book.rules))
    assert book.resolve(less, kind) == book.resolve(labels, kind)
    assert book.operations(less) == book.operations(labels)
