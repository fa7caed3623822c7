"""Rules: which rate holds for whom. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Literal, NamedTuple

from spandial.abi import EntryKind, Mode, encode_word
from spandial.labels import Labels

__all__ = ["PROTOCOLS", "Finding", "KindName", "Rule", "RuleBook", "Selector", "selector_text"]

KindName = Literal["internal", "http", "grpc", "db"]

PROTOCOLS: dict[KindName, EntryKind] = {
    "internal": EntryKind.INTERNAL,
    "http": EntryKind.HTTP,
    "grpc": EntryKind.GRPC,
    "db": EntryKind.DB,
}

_LABELS = ("service", "version", "env")
_GLOB = frozenset("*?[")


@dataclass(frozen=True)
class Selector:
    """What a rule applies to. A field that is None applies to all; service, version and env are globs."""

    service: str | None = None
    version: str | None = None
    env: str | None = None
    protocol: KindName | None = None

    def matches(self, labels: Labels, kind: EntryKind) -> bool:
        if self.protocol is not None and PROTOCOLS[self.protocol] != kind:
            return False
        return self.matches_labels(labels)

    def matches_labels(self, labels: Labels) -> bool:
        for name in _LABELS:
            pattern = getattr(self, name)
            if pattern is not None and not fnmatchcase(getattr(labels, name), pattern):
                return False
        return True

    @property
    def specificity(self) -> tuple[int, ...]:
        """Greater wins. In this order: more fields named; more of them without a wildcard; service, then version,
        then env, then protocol, each exact before glob before absent; more literal characters."""
        fields = (self.service, self.version, self.env, self.protocol)
        ranks = tuple(0 if text is None else 1 if _GLOB & set(text) else 2 for text in fields)
        literal = sum(sum(char not in _GLOB for char in text) for text in fields if text is not None)
        return (sum(rank > 0 for rank in ranks), sum(rank == 2 for rank in ranks), *ranks, literal)


def selector_text(selector: Selector) -> str:
    """A selector as people write it: `service=checkout env=gray`, or `default`. No two selectors have the same text."""
    fields = [
        f"{name}={_quoted(value)}"
        for name in ("service", "version", "env", "protocol")
        if (value := getattr(selector, name)) is not None
    ]
    return " ".join(fields) or "default"


def _quoted(value: str) -> str:
    return value if value.isprintable() and not {" ", '"'} & set(value) else json.dumps(value)


@dataclass(frozen=True)
class Rule:
    """A selector's rate (percentage 0-100) and mode. The revision grows by one with every change of any rule.

    Attributes:
        expires: when the rule ends by itself, in Unix time in seconds; None: it does not.
    """

    selector: Selector
    rate: float
    mode: Mode = Mode.FOLLOW
    revision: int = 0
    expires: float | None = None

    @property
    def word(self) -> int:
        """The rate word. A rule that names a protocol also thins the children of kept parents."""
        return encode_word(self.rate, self.mode, thin=self.selector.protocol is not None)


class Finding(NamedTuple):
    """What one rule is to a process.

    Attributes:
        wins: the kinds of entry whose rate it sets.
        why: why it sets no other's, or none at all; empty where nothing more is to be said.
    """

    rule: Rule
    wins: tuple[KindName, ...]
    why: str


@dataclass(frozen=True)
class RuleBook:
    """All rules, at most one for a selector. Immutable: a change makes another book."""

    rules: dict[Selector, Rule] = field(default_factory=dict)
    revision: int = 0

    @classmethod
    def of(cls, rules: Iterable[Rule], revision: int = 0) -> RuleBook:
        book = {rule.selector: rule for rule in rules}
        return cls(book, max([revision, *(rule.revision for rule in book.values())]))

    def __iter__(self) -> Iterator[Rule]:
        """The rules, the ones that win first."""
        return iter(self._ordered)

    @cached_property
    def _ordered(self) -> list[Rule]:
        # Of two equally specific rules the later one wins.
        return sorted(self.rules.values(), key=lambda rule: (rule.selector.specificity, rule.revision), reverse=True)

    def put(self, rule: Rule) -> RuleBook:
        """The book with this rule, which replaces the one of the same selector and gets the next revision."""
        revision = self.revision + 1
        return RuleBook({**self.rules, rule.selector: replace(rule, revision=revision)}, revision)

    def remove(self, selector: Selector) -> RuleBook:
        """The book without this selector's rule. Raises KeyError."""
        left = dict(self.rules)
        del left[selector]
        return RuleBook(left, self.revision + 1)

    def renew(self, selector: Selector, expires: float) -> RuleBook:
        """The book with this selector's rule as it is, but for the time when it ends. Raises KeyError."""
        return self.put(replace(self.rules[selector], expires=expires))

    def without_expired(self, now: float) -> RuleBook:
        """The book without the rules whose time has come; itself if there are none."""
        left = {rule.selector: rule for rule in self.rules.values() if rule.expires is None or rule.expires > now}
        return self if len(left) == len(self.rules) else RuleBook(left, self.revision + 1)

    @property
    def next_expiry(self) -> float | None:
        """When the next rule ends."""
        return min((rule.expires for rule in self.rules.values() if rule.expires is not None), default=None)

    def resolve(self, labels: Labels, kind: EntryKind) -> Rule | None:
        """The rule that sets the rate of this kind of entry for a process with these labels."""
        return next((rule for rule in self if rule.selector.matches(labels, kind)), None)

    def explain(self, labels: Labels) -> list[Finding]:
        """What each rule is to a process with these labels, the ones that win first."""
        winners = {kind: self.resolve(labels, kind) for kind in EntryKind}
        return [_finding(rule, labels, winners) for rule in self]

    @property
    def fallback(self) -> int | None:
        """The word that holds when the agent is gone: the node default's rate, in mode follow. None without one."""
        default = self.rules.get(Selector())
        return None if default is None else encode_word(default.rate)


def _finding(rule: Rule, labels: Labels, winners: dict[EntryKind, Rule | None]) -> Finding:
    selector = rule.selector
    for name in _LABELS:
        pattern, label = getattr(selector, name), getattr(labels, name)
        if pattern is not None and not fnmatchcase(label, pattern):
            return Finding(rule, (), f"{name} is {label!r}, which {pattern!r} does not match")
    wins = tuple(name for name, kind in PROTOCOLS.items() if winners[kind] is rule)
    others = {
        winner.selector: winner
        for kind, winner in winners.items()
        if winner is not None and winner is not rule and selector.matches(labels, kind)
    }
    reasons = [
        f"{'more specific' if winner.selector.specificity > selector.specificity else 'as specific, and put later'}: "
        f"{selector_text(winner.selector)}"
        for winner in others.values()
    ]
    return Finding(rule, wins, "; ".join(reasons))
