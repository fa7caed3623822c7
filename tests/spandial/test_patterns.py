"""Patterns of operations: what they match, and that an application makes no regular expression twice."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from spandial.patterns import parse_operation

texts = st.text(st.sampled_from("/abA \n"), max_size=12)
globs = st.text(st.sampled_from("/abA*?[]!-"), max_size=8).map("/".__add__)


@given(globs, st.one_of(texts, texts.map("/".__add__)))
@example("/a*a", "/a")
@example("/a*b*a", "/aba")
@example("/*ab*b", "/abab")
@example("/**", "/")
def test_a_pattern_matches_what_its_glob_matches(glob: str, text: str) -> None:
    assert bool(parse_operation(glob).matcher()(text)) == fnmatchcase(text, glob)


@pytest.mark.parametrize("glob", ["/items/*/price*of*x", "/items/?/price[s]"])
def test_a_pattern_that_is_read_again_costs_no_regular_expression(glob: str, monkeypatch: pytest.MonkeyPatch) -> None:
    matches = parse_operation(glob).matcher()
    monkeypatch.setattr(re, "compile", None)
    assert parse_operation(glob).matcher() is matches


def test_a_pattern_with_nothing_but_stars_costs_none_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(re, "compile", None)
    assert parse_operation("/orders/*/never*read*before").matcher()("/orders/1/never 2 read 3 before")
