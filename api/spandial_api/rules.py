"""Rules: which rate holds for whom. Pure."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import NamedTuple

from spandial.abi import EntryKind, Mode, encode_word
from spandial.labels import Labels
from spandial.patterns import parse_operation
from spandial_api.selectors import PROTOCOLS, KindName, Selector, selector_text

__all__ = ["DEFAULT_FLOOR", "Finding", "Rule", "RuleBook"]

DEFAULT_FLOOR = 0.001  # percent: one in 100,000, Jaeger's least probability of adaptive sampling


@dataclass(frozen=True)
class Rule:
    """A selector's rate and mode. The revision grows by one with every change of any rule.

    Attributes:
        rate: percentage 0-100; None for a rule with a target.
        expires: when the rule ends by itself, in Unix time in seconds; None: it does not.
        target: kept entries per second and service on this node, to which the rate is steered.
        floor: percentage below which a rate is not steered.
    """

    selector: Selector
    rate: float | None
    mode: Mode = Mode.FOLLOW
    revision: int = 0
    expires: float | None = None
    target: float | None = None
    floor: float = DEFAULT_FLOOR

    def word(self, rate: float) -> int:
        """The word of a rate under this rule. A rule that names a protocol also thins the children of kept parents."""
        return _word(rate, self.mode.value, self.selector.protocol is not None)

    @property
    def says(self) -> tuple[object, ...]:
        """What is to be obeyed, whenever it was put."""
        return self.selector, self.rate, self.mode, self.expires, self.target, self.floor

    @cached_property
    def order(self) -> tuple[tuple[int, ...], int, str]:
        """Of two rules for the same entry the greater wins: the more specific; of two equally specific the later; of
        two of one batch the one whose selector, written, comes later in the alphabet."""
        return self.selector.specificity, self.revision, selector_text(self.selector)


class Finding(NamedTuple):
    """What one rule is to a process.

    Attributes:
        wins: the kinds of entry whose rate it sets.
        why: why it sets no other's, or none at all; empty where nothing more is to be said.
    """

    rule: Rule
    wins: tuple[KindName, ...]
    why: str


# By a label and its value that a rule needs; by a label and None where it has a glob for it; else by None.
_Buckets = dict[tuple[str, str | None] | None, list[Rule]]
_VALUES = 16_384  # of which it is known which globs match


class RuleBook:
    """All rules, at most one for a selector. Immutable: a change makes another book, at a cost that hardly grows with
    the number of rules.

    Attributes:
        rules: by selector.
        revision: of the latest change.
    """

    def __init__(self, rules: dict[Selector, Rule] | None = None, revision: int = 0) -> None:
        self.rules = rules or {}
        self.revision = revision
        # Every rule once; those that win come last.
        self._buckets: _Buckets = {}
        for rule in sorted(self.rules.values(), key=_order):
            self._buckets.setdefault(_bucket(rule.selector), []).append(rule)
        # Of a label's rules with a glob for it those that match a value: a change may ask for thousands of processes.
        self._matching: dict[tuple[str, str], list[Rule]] = {}
        self._by_operation = sum(selector.operation is not None for selector in self.rules)
        # A book does not keep the one before it alive, only what stands for it.
        self._self, self._before = object(), object()
        self._touched: tuple[Selector, ...] = ()

    @classmethod
    def of(cls, rules: Iterable[Rule], revision: int = 0) -> RuleBook:
        book = {rule.selector: rule for rule in rules}
        return cls(book, max([revision, *(rule.revision for rule in book.values())]))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RuleBook) and (self.rules, self.revision) == (other.rules, other.revision)

    def __iter__(self) -> Iterator[Rule]:
        """The rules, the ones that win first."""
        return iter(sorted(self.rules.values(), key=_order, reverse=True))

    def put(self, rule: Rule) -> RuleBook:
        """The book with this rule, which replaces the one of the same selector and gets the next revision."""
        return self.change([rule])

    def remove(self, selector: Selector) -> RuleBook:
        """The book without this selector's rule. Raises KeyError."""
        return self.change([], [selector])

    def renew(self, selector: Selector, expires: float) -> RuleBook:
        """The book with this selector's rule as it is, but for the time when it ends. Raises KeyError."""
        return self.put(replace(self.rules[selector], expires=expires))

    def without_expired(self, now: float) -> RuleBook:
        """The book without the rules whose time has come; itself if there are none."""
        over = [rule.selector for rule in self.rules.values() if rule.expires is not None and rule.expires <= now]
        return self.change([], over) if over else self

    def change(self, put: Iterable[Rule], removed: Iterable[Selector] = ()) -> RuleBook:
        """The book with all of these changes, under one revision; first the rules are removed, then the others put.
        Raises KeyError for a rule that is not there, nothing changed."""
        book = RuleBook()
        book.revision = self.revision + 1
        book.rules = self.rules.copy()
        book._buckets = self._buckets.copy()
        book._by_operation = self._by_operation
        put, removed = list(put), list(removed)
        book._before = self._self
        book._touched = (*removed, *(rule.selector for rule in put))
        if all(selector.bucket is not None for selector in book._touched):
            book._matching = self._matching
        for selector in removed:
            book._drop(book.rules.pop(selector))
        for rule in put:
            old = book.rules.get(rule.selector)
            if old is not None:
                book._drop(old)
            new = book.rules[rule.selector] = replace(rule, revision=book.revision)
            key = _bucket(rule.selector)
            bucket = book._buckets[key] = book._buckets.get(key, []).copy()
            insort(bucket, new, key=_order)
            book._by_operation += rule.selector.operation is not None
        return book

    def _drop(self, rule: Rule) -> None:
        key = _bucket(rule.selector)
        self._buckets[key] = [r for r in self._buckets[key] if r is not rule]
        if not self._buckets[key]:
            del self._buckets[key]
        self._by_operation -= rule.selector.operation is not None

    def changes_from(self, other: RuleBook) -> dict[Selector, tuple[Rule | None, Rule | None]]:
        """The other's rule and this one's for each selector whose rules are not the same object. At no cost where one
        book is the other's with one change."""
        if self._before is other._self:
            touched: Iterable[Selector] = self._touched
        elif other._before is self._self:
            touched = other._touched
        else:
            here, there = set(map(id, self.rules.values())), set(map(id, other.rules.values()))
            touched = [rule.selector for rule in other.rules.values() if id(rule) not in here]
            touched += [rule.selector for rule in self.rules.values() if id(rule) not in there]
        pairs = {selector: (other.rules.get(selector), self.rules.get(selector)) for selector in touched}
        return {selector: (old, new) for selector, (old, new) in pairs.items() if old is not new}

    @property
    def next_expiry(self) -> float | None:
        """When the next rule ends."""
        return min((rule.expires for rule in self.rules.values() if rule.expires is not None), default=None)

    def resolve(self, labels: Labels, kind: EntryKind) -> Rule | None:
        """The rule that sets the rate of this kind of entry for a process with these labels, but for operations that
        have rules of their own."""
        best: Rule | None = None
        for bucket in self._buckets_of(labels):
            for rule in reversed(bucket):
                if best is not None and rule.order < best.order:
                    break
                if rule.selector.operation is None and rule.selector.matches(labels, kind):
                    best = rule
                    break
        return best

    def winners(self, labels: Labels) -> tuple[Rule | None, ...]:
        """What `resolve` finds for each kind of entry, at the cost of one."""
        best: list[Rule | None] = [None] * len(EntryKind)
        for bucket in self._buckets_of(labels):
            for rule in reversed(bucket):
                if all(own is not None and rule.order < own.order for own in best):
                    break
                if rule.selector.operation is None and rule.selector.matches_labels(labels):
                    for kind in EntryKind:
                        own = best[kind]
                        if rule.selector.matches_kind(kind) and (own is None or rule.order > own.order):
                            best[kind] = rule
        return tuple(best)

    def operations(self, labels: Labels) -> list[Rule]:
        """The rules by operation for a process with these labels, the ones that win first. They win over all others."""
        if not self._by_operation:
            return []
        found = [
            rule
            for bucket in self._buckets_of(labels)
            for rule in bucket
            if rule.selector.operation is not None and rule.selector.matches_labels(labels)
        ]
        return sorted(found, key=_order, reverse=True)

    def explain(self, labels: Labels, operation: str = "") -> list[Finding]:
        """What each rule is to a process with these labels, the ones that win first.

        Args:
            operation: `GET /pay`, to be told of that one; without it, rules by operation are for the operations that
                they name, and all others are for the rest.
        """
        winners = {kind: self.resolve(labels, kind) for kind in EntryKind}
        if operation:
            for kind in EntryKind:
                of_operation = (rule for rule in self.operations(labels) if _is_for(rule, operation, kind))
                winners[kind] = next(of_operation, winners[kind])
        return [_finding(rule, labels, operation, winners) for rule in self]

    @property
    def fallback(self) -> int | None:
        """The word that holds when the agent is gone: the node default's rate (its floor, where nobody is left to steer
        it), in mode follow. None without one."""
        default = self.rules.get(Selector())
        if default is None:
            return None
        return encode_word(default.floor if default.rate is None else default.rate)

    def _buckets_of(self, labels: Labels) -> Iterator[list[Rule]]:
        for key in (None, *labels.pairs):
            if (bucket := self._buckets.get(key)) is not None:
                yield bucket
        for name, value in zip(labels._fields, labels[:4]):
            if (bucket := self._buckets.get((name, None))) is not None:
                yield self._that_match(bucket, name, value)

    def _that_match(self, bucket: list[Rule], name: str, value: str) -> list[Rule]:
        known = self._matching.get((name, value))
        if known is None:
            if len(self._matching) >= _VALUES:
                self._matching.clear()
            globs = ((rule, rule.selector.first_glob) for rule in bucket)
            known = self._matching[name, value] = [rule for rule, glob in globs if glob is not None and glob[1](value)]
        return known


def _bucket(selector: Selector) -> tuple[str, str | None] | None:
    if selector.bucket is not None:
        return selector.bucket
    return (selector.first_glob[0], None) if selector.first_glob is not None else None


@lru_cache(1024)  # a rule's word is asked for by each group of processes under it
def _word(rate: float, mode: int, thin: bool) -> int:
    return encode_word(rate, Mode(mode), thin=thin)


def _order(rule: Rule) -> tuple[tuple[int, ...], int, str]:
    return rule.order


def _is_for(rule: Rule, operation: str, kind: EntryKind) -> bool:
    pattern, asked = rule.selector.pattern, parse_operation(operation)
    if pattern is None:
        return rule.selector.matches_kind(kind)
    return rule.selector.matches_kind(kind) and pattern.matches(asked.method, asked.path)


def _finding(rule: Rule, labels: Labels, operation: str, winners: dict[EntryKind, Rule | None]) -> Finding:
    selector = rule.selector
    mismatch = selector.mismatch(labels)
    if mismatch is not None:
        return Finding(rule, (), f"{mismatch.name} is {mismatch.value!r}, which {mismatch.pattern!r} does not match")
    kinds = [name for name, kind in PROTOCOLS.items() if selector.matches_kind(kind)]
    if selector.operation is not None and not operation:
        return Finding(rule, tuple(kinds), f"for operations that match {selector.operation!r} only")
    if operation and not any(_is_for(rule, operation, PROTOCOLS[name]) for name in kinds):
        return Finding(rule, (), f"the operation is {operation!r}, which {selector.operation!r} does not match")
    wins = tuple(name for name in kinds if winners[PROTOCOLS[name]] is rule)
    others = {
        winner.selector: winner
        for name in kinds
        if (winner := winners[PROTOCOLS[name]]) is not None and winner is not rule
    }
    reasons = [
        f"{'more specific' if winner.selector.specificity > selector.specificity else 'as specific, and put later'}: "
        f"{selector_text(winner.selector)}"
        for winner in others.values()
    ]
    return Finding(rule, wins, "; ".join(reasons))
