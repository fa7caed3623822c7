"""What a rule applies to, and which of two selectors wins. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import Literal, NamedTuple

from spandial.abi import EntryKind
from spandial.labels import Labels
from spandial.patterns import OperationPattern, glob_matcher, parse_operation

__all__ = ["FIELDS", "PROTOCOLS", "KindName", "Mismatch", "Selector", "selector_text"]

KindName = Literal["internal", "http", "grpc", "db"]

PROTOCOLS: dict[KindName, EntryKind] = {
    "internal": EntryKind.INTERNAL,
    "http": EntryKind.HTTP,
    "grpc": EntryKind.GRPC,
    "db": EntryKind.DB,
}

FIELDS = ("operation", "service", "version", "env", "tenant", "protocol")
_OF_PROCESS = ("service", "version", "env", "tenant")
_GLOB = frozenset("*?[")


class Mismatch(NamedTuple):
    """The first field of a selector that does not match a process."""

    name: str
    value: str
    pattern: str


@dataclass(frozen=True)
class Selector:
    """What a rule applies to. A field that is None applies to all; service, version, env, tenant, the operation and the
    values of labels are globs.

    Attributes:
        operation: as `spandial.patterns` has it.
        labels: globs for further resource attributes, by name, in the order of their names.
    """

    service: str | None = None
    version: str | None = None
    env: str | None = None
    protocol: KindName | None = None
    operation: str | None = None
    tenant: str | None = None
    labels: tuple[tuple[str, str], ...] = ()

    def matches(self, labels: Labels, kind: EntryKind) -> bool:
        """Whether this is for such entries of a process: for all of them, or where it names an operation for some."""
        return self.matches_kind(kind) and self.matches_labels(labels)

    def matches_kind(self, kind: EntryKind) -> bool:
        return self.protocol is None or PROTOCOLS[self.protocol] == kind

    def matches_labels(self, labels: Labels) -> bool:
        # Not all(), which takes three times as long: a change of the rules asks this thousands of times.
        for value_of, matches, _ in self._matchers:  # noqa: SIM110
            if not matches(value_of(labels)):
                return False
        return True

    def mismatch(self, labels: Labels) -> Mismatch | None:
        """Why this is for no entry of a process; None where it is for some."""
        for (value_of, matches, _), (name, pattern) in zip(self._matchers, self._patterns()):
            if not matches(value_of(labels)):
                return Mismatch(name, value_of(labels), pattern)
        return None

    @cached_property
    def pattern(self) -> OperationPattern | None:
        """The operation, parsed."""
        return None if self.operation is None else parse_operation(self.operation)

    @cached_property
    def specificity(self) -> tuple[int, ...]:
        """Greater wins. In this order: an operation named; more fields named; more of them without a wildcard;
        operation, service, version, env, tenant, protocol, each exact before glob before absent, then labels; more
        literal characters."""
        fields = [getattr(self, name) for name in FIELDS]
        ranks = [0 if text is None else 1 if _GLOB & set(text) else 2 for text in fields]
        further = [1 if _GLOB & set(text) else 2 for _, text in self.labels]
        texts = [*(text for text in fields if text is not None), *(text for _, text in self.labels)]
        literal = sum(sum(char not in _GLOB for char in text) for text in texts)
        all_ranks = ranks + further
        named, exact = sum(rank > 0 for rank in all_ranks), sum(rank == 2 for rank in all_ranks)
        return (int(self.operation is not None), named, exact, *ranks, sum(further), literal)

    @cached_property
    def bucket(self) -> tuple[str, str] | None:
        """A label and the one value of it that this can match, to look rules up by; None where there is none."""
        return next(((name, pattern) for name, pattern in self._patterns() if not _GLOB & set(pattern)), None)

    @cached_property
    def first_glob(self) -> tuple[str, Callable[[str], object]] | None:
        """The first of service, version, env and tenant for which this has a glob, and what its values must match."""
        globs = ((name, matches) for _, matches, name in self._matchers if name in _OF_PROCESS)
        return next(((name, matches) for name, matches in globs if _GLOB & set(getattr(self, name))), None)

    @cached_property
    def _matchers(self) -> tuple[tuple[Callable[[Labels], str], Callable[[str], object], str], ...]:
        return tuple((_value_of(name), _matcher(pattern), name) for name, pattern in self._patterns())

    def _patterns(self) -> Iterator[tuple[str, str]]:
        for name in _OF_PROCESS:
            if (pattern := getattr(self, name)) is not None:
                yield name, pattern
        for name, pattern in self.labels:
            yield f"label.{name}", pattern


def _value_of(name: str) -> Callable[[Labels], str]:
    if name.startswith("label."):
        attribute = name.removeprefix("label.")
        return lambda labels: labels.get(attribute)
    return attrgetter(name)


def _matcher(pattern: str) -> Callable[[str], object]:
    return glob_matcher(pattern) if _GLOB & set(pattern) else pattern.__eq__


def selector_text(selector: Selector) -> str:
    """A selector as people write it: `service=checkout env=gray`, or `default`. No two selectors have the same text."""
    fields = [(name, getattr(selector, name)) for name in _OF_PROCESS]
    fields += [(f"label.{name}", pattern) for name, pattern in selector.labels]
    fields += [("protocol", selector.protocol), ("operation", selector.operation)]
    return (
        " ".join(f"{_quoted(name)}={_quoted(str(value))}" for name, value in fields if value is not None) or "default"
    )


def _quoted(value: str) -> str:
    return value if value.isprintable() and not {" ", '"', "="} & set(value) else json.dumps(value)
