"""Selectors, their precedence, and the book of rules."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise, permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spandial.abi import EntryKind, Flag, Mode, encode_word
from spandial.labels import Labels
from spandial_api.rules import Rule, RuleBook
from spandial_api.selectors import PROTOCOLS, KindName, Selector, selector_text

CHECKOUT = Labels(service="checkout", version="v1.2", env="gray")

# Few values, so that rules overlap and tie.
_patterns = st.sampled_from([None, "a", "ab", "a*", "*", "?b", "*b", "[ab]*"])
_protocols: st.SearchStrategy[KindName | None] = st.sampled_from([None, *PROTOCOLS])
_selectors = st.builds(Selector, _patterns, _patterns, _patterns, _protocols)
_names = st.sampled_from(["", "a", "b", "ab", "bb"])
_labels = st.builds(Labels, _names, _names, _names)
_kinds = st.sampled_from(EntryKind)


def book_of(*selectors: Selector) -> RuleBook:
    book = RuleBook()
    for selector in selectors:
        book = book.put(Rule(selector, 50))
    return book


@pytest.mark.parametrize(
    ("pattern", "service"),
    [
        ("checkout", "checkout"),
        ("check*", "checkout"),
        ("*", ""),
        ("check???", "checkout"),
        ("[bc]heckout", "checkout"),
        ("checkout [eu]", "checkout u"),
        ("a/b*", "a/b/c"),
    ],
)
def test_a_pattern_matches_the_service(pattern: str, service: str) -> None:
    assert Selector(service=pattern).matches(Labels(service), EntryKind.HTTP)


@pytest.mark.parametrize(
    ("pattern", "service"),
    [("checkout", "Checkout"), ("check", "checkout"), ("?", ""), ("checkout", ""), ("[!c]*", "c")],
)
def test_a_pattern_does_not_match_another_service(pattern: str, service: str) -> None:
    assert not Selector(service=pattern).matches(Labels(service), EntryKind.HTTP)


def test_all_fields_must_match() -> None:
    selector = Selector(service="checkout", version="v1*", env="gray")
    assert selector.matches_labels(CHECKOUT)
    for other in (CHECKOUT._replace(service="cart"), CHECKOUT._replace(version="v2"), CHECKOUT._replace(env="blue")):
        assert not selector.matches_labels(other)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_matches_its_own_kind_of_entry_only(name: KindName) -> None:
    matched = [kind for kind in EntryKind if Selector(protocol=name).matches(CHECKOUT, kind)]
    assert matched == [PROTOCOLS[name]]


@given(_labels, _kinds)
def test_a_selector_without_fields_matches_everything(labels: Labels, kind: EntryKind) -> None:
    assert Selector().matches(labels, kind)


@pytest.mark.parametrize(
    ("winner", "loser"),
    [
        pytest.param(Selector(service="*", env="*"), Selector(service="checkout"), id="more fields"),
        pytest.param(Selector(env="*"), Selector(), id="any field before the default"),
        pytest.param(
            Selector(service="*", version="v1.2", env="gray"),
            Selector(service="checkout", version="v1*", env="gr*"),
            id="more fields without a wildcard",
        ),
        pytest.param(Selector(service="checkout"), Selector(version="v1.2"), id="service before version"),
        pytest.param(Selector(version="v1.2"), Selector(env="gray"), id="version before env"),
        pytest.param(Selector(env="gray"), Selector(protocol="http"), id="env before protocol"),
        pytest.param(Selector(service="checkout", env="*"), Selector(service="*", env="gray"), id="exact before glob"),
        pytest.param(Selector(service="*", env="gray"), Selector(version="v1.2", env="*"), id="glob before absent"),
        pytest.param(Selector(service="check*"), Selector(service="c*"), id="more literal characters"),
    ],
)
def test_precedence_does_not_depend_on_the_order_of_putting(winner: Selector, loser: Selector) -> None:
    for order in permutations((winner, loser)):
        rule = book_of(*order).resolve(CHECKOUT, EntryKind.HTTP)
        assert rule is not None
        assert rule.selector == winner


def test_of_two_equally_specific_rules_the_later_one_wins() -> None:
    first, second = Selector(service="check*"), Selector(service="*ckout")
    assert first.specificity == second.specificity
    for order in permutations((first, second)):
        rule = book_of(*order).resolve(CHECKOUT, EntryKind.HTTP)
        assert rule is not None
        assert rule.selector == order[-1]


@given(st.lists(_selectors, unique=True, min_size=1, max_size=12), _labels, _kinds)
def test_the_rule_that_resolves_is_the_greatest_that_matches(
    selectors: list[Selector], labels: Labels, kind: EntryKind
) -> None:
    book = book_of(*selectors)
    matching = [rule for rule in book.rules.values() if rule.selector.matches(labels, kind)]
    best = max(matching, key=lambda rule: (rule.selector.specificity, rule.revision), default=None)
    assert book.resolve(labels, kind) == best
    assert book.winners(labels)[kind] == best


@given(st.lists(st.tuples(st.booleans(), _selectors), max_size=12), st.lists(_labels, min_size=1, max_size=3))
def test_what_a_book_has_found_holds_for_no_other_book(
    steps: list[tuple[bool, Selector]], processes: list[Labels]
) -> None:
    book = RuleBook()
    for put, selector in steps:
        if put or selector in book.rules:
            book = book.put(Rule(selector, 50)) if put else book.remove(selector)
        afresh = RuleBook(book.rules, book.revision)
        for labels in processes:
            assert book.winners(labels) == afresh.winners(labels)


def test_a_glob_is_asked_once_for_all_processes_of_the_same_service() -> None:
    selectors = [Selector(service=f"other-{number}*", env="gray") for number in range(5)]
    selectors += [Selector(service=f"more-{number}*", env="g*") for number in range(5)]
    asked: list[str] = []
    for selector in selectors:
        (value_of, matches, name), *rest = selector._matchers

        def ask(value: str, matches: Callable[[str], object] = matches) -> object:
            asked.append(value)
            return matches(value)

        selector.__dict__["_matchers"] = ((value_of, ask, name), *rest)
    book = book_of(*selectors)
    for number in range(100):
        assert not any(book.winners(Labels("checkout", f"v{number}", "blue")))
    assert asked == ["checkout"] * 5  # the others name an env


def test_every_rule_says_what_it_wins_and_why_no_more() -> None:
    selectors = [
        Selector(),
        Selector(service="check*"),
        Selector(service="*ckout"),
        Selector(service="checkout", protocol="http"),
        Selector(service="checkout", env="gra?"),
        Selector(service="checkout", env="stable"),
        Selector(version="v9"),
    ]
    findings = {selector_text(f.rule.selector): (f.wins, f.why) for f in book_of(*selectors).explain(CHECKOUT)}
    gray = "service=checkout env=gra?"
    assert findings == {
        "service=checkout protocol=http": (("http",), ""),
        gray: (("internal", "grpc", "db"), "more specific: service=checkout protocol=http"),
        "service=checkout env=stable": ((), "env is 'gray', which 'stable' does not match"),
        "version=v9": ((), f"version is {CHECKOUT.version!r}, which 'v9' does not match"),
        "service=*ckout": ((), f"more specific: {gray}; more specific: service=checkout protocol=http"),
        "service=check*": ((), f"more specific: {gray}; more specific: service=checkout protocol=http"),
        "default": ((), f"more specific: {gray}; more specific: service=checkout protocol=http"),
    }
    two = book_of(Selector(service="check*"), Selector(service="*ckout")).explain(CHECKOUT)
    assert [(f.wins, f.why) for f in two] == [
        (tuple(PROTOCOLS), ""),
        ((), "as specific, and put later: service=*ckout"),
    ]


@given(st.lists(_selectors, unique=True, max_size=12), _labels)
def test_what_is_explained_is_what_holds(selectors: list[Selector], labels: Labels) -> None:
    book = book_of(*selectors)
    findings = book.explain(labels)
    assert [finding.rule for finding in findings] == list(book)
    for name, kind in PROTOCOLS.items():
        assert [f.rule for f in findings if name in f.wins] == [
            r for r in [book.resolve(labels, kind)] if r is not None
        ]
    for rule, wins, why in findings:
        kinds = [name for name, kind in PROTOCOLS.items() if rule.selector.matches(labels, kind)]
        assert bool(why) == (list(wins) != kinds or not kinds)


@given(st.lists(_selectors, unique=True, max_size=12))
def test_a_book_is_read_in_one_strict_order(selectors: list[Selector]) -> None:
    keys = [(rule.selector.specificity, rule.revision) for rule in book_of(*selectors)]
    assert all(greater > less for greater, less in pairwise(keys))
    assert len(keys) == len(selectors)


@given(st.lists(_selectors, unique=True, max_size=8), st.randoms(use_true_random=False), _labels, _kinds)
def test_the_order_of_putting_matters_to_equally_specific_rules_only(
    selectors: list[Selector], random: object, labels: Labels, kind: EntryKind
) -> None:
    shuffled = list(selectors)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = book_of(*selectors).resolve(labels, kind), book_of(*shuffled).resolve(labels, kind)
    if one is None or other is None:
        assert one is other
    else:
        assert one.selector.specificity == other.selector.specificity


@given(st.lists(st.tuples(st.booleans(), _selectors, st.floats(0, 100))))
def test_a_book_is_what_was_put_and_not_removed(steps: list[tuple[bool, Selector, float]]) -> None:
    book, model = RuleBook(), dict[Selector, Rule]()
    for changes, (putting, selector, rate) in enumerate(steps):
        before = book
        if putting:
            book = book.put(Rule(selector, rate, revision=99))
            model[selector] = Rule(selector, rate, revision=before.revision + 1)
        elif selector in model:
            book = book.remove(selector)
            del model[selector]
        else:
            with pytest.raises(KeyError):
                book.remove(selector)
            continue
        assert book.revision == before.revision + 1 <= changes + 1
        assert book.rules == model
        assert before.rules is not book.rules


def test_a_book_of_stored_rules_never_gives_a_revision_twice() -> None:
    stored = [Rule(Selector(env="gray"), 1, revision=7), Rule(Selector(), 1, revision=3)]
    assert RuleBook.of(stored, 5).put(Rule(Selector(), 2)).revision == 8
    assert RuleBook.of(stored, 11).put(Rule(Selector(), 2)).revision == 12


def test_without_a_matching_rule_nothing_resolves() -> None:
    assert RuleBook().resolve(CHECKOUT, EntryKind.HTTP) is None
    assert book_of(Selector(env="blue")).resolve(CHECKOUT, EntryKind.HTTP) is None


def test_each_kind_of_entry_resolves_for_itself() -> None:
    book = book_of(Selector(service="checkout"), Selector(service="checkout", protocol="db"))
    protocols = [rule.selector.protocol for kind in EntryKind if (rule := book.resolve(CHECKOUT, kind))]
    assert protocols == [None, None, None, "db"]


@given(_selectors, st.floats(0, 100), st.sampled_from(Mode))
def test_only_a_rule_that_names_a_protocol_thins(selector: Selector, rate: float, mode: Mode) -> None:
    word = Rule(selector, rate, mode).word(rate)
    assert bool(word & Flag.THIN) == (selector.protocol is not None)
    assert word & ~Flag.THIN == encode_word(rate, mode)


def test_the_fallback_is_the_nodes_default_without_its_mode() -> None:
    assert book_of(Selector(env="*")).fallback is None
    book = RuleBook().put(Rule(Selector(), 5, Mode.BOOST)).put(Rule(Selector(env="*"), 80))
    assert book.fallback == encode_word(5)


def test_what_two_books_do_not_share_is_told_whichever_came_first() -> None:
    a, b, c = Selector(env="a"), Selector(env="b"), Selector(env="c")
    first = RuleBook().change([Rule(a, 1), Rule(b, 2)])
    second = first.change([Rule(b, 3), Rule(c, 4)], [a])
    expected = {s: (first.rules.get(s), second.rules.get(s)) for s in (a, b, c)}
    assert second.changes_from(first) == expected
    assert first.changes_from(second) == {s: (new, old) for s, (old, new) in expected.items()}
    assert second.changes_from(RuleBook()) == {s: (None, second.rules[s]) for s in (b, c)}
    assert first.remove(a).changes_from(second) == {b: (second.rules[b], first.rules[b]), c: (second.rules[c], None)}
    assert second.changes_from(second) == {}
