"""Rules: which rate holds for whom. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Literal

from spandial.abi import EntryKind, Mode, encode_word
from spandial.labels import Labels

__all__ = ["PROTOCOLS", "KindName", "Rule", "RuleBook", "Selector"]

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

    @property
    def fallback(self) -> int | None:
        """The word that holds when the agent is gone: the node default's rate, in mode follow. None without one."""
        default = self.rules.get(Selector())
        return None if default is None else encode_word(default.rate)
