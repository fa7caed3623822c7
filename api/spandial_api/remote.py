"""What SDKs without the hook are told, in the protocols that they speak."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Collection
from typing import NamedTuple

from spandial.abi import EntryKind
from spandial.labels import Labels
from spandial_api.control import Control
from spandial_api.jaeger import Strategy, strategy_for
from spandial_api.known import agreed, agreed_by_service, answers_to, reduced, selected_by
from spandial_api.node import Connection, Node
from spandial_api.reservoirs import Reservoirs
from spandial_api.rules import RuleBook
from spandial_api.slices import Slices
from spandial_api.xray import XRayRule, xray_rules

__all__ = ["RemoteSampling", "XRayRules"]

_LABELS_S = 1.0  # processes come and go: so often it is looked who is there
_STRATEGIES = 256  # by labels and rates
_MADE = 64  # answers; one that was forgotten is made again
_MEMORY_POLLS = 3  # a client that missed so many is gone


class XRayRules(NamedTuple):
    """The rules by name, in the order of their priorities, and since when they are these, in Unix time in seconds."""

    rules: dict[str, XRayRule]
    modified: float


class _Made(NamedTuple):
    """An answer, and what it was made of."""

    book: RuleBook
    known: dict[str, Labels]
    answer: XRayRules


class RemoteSampling:
    """The rules in force, for whoever asks by the name of a service.

    Args:
        default_rate: percentage where no rule is for a process.
        interval_s: how often X-Ray's clients are to ask.

    Attributes:
        answers: how many were given, by protocol.
        reservoirs: how X-Ray's clients share throughputs.
        slices: in which their requests are worked on.
    """

    def __init__(self, control: Control, node: Node, default_rate: float = 100.0, interval_s: int = 10) -> None:
        self.answers: Counter[str] = Counter(jaeger=0, xray=0)
        self.interval_s = interval_s
        self.quota_ttl_s = interval_s * _MEMORY_POLLS
        self.reservoirs = Reservoirs(self.quota_ttl_s)
        self.slices = Slices()
        self._control = control
        self._node = node
        self._default_rate = default_rate
        self._lock = asyncio.Lock()
        self._looked = -math.inf
        self._named: tuple[RuleBook, frozenset[str]] | None = None
        self._labels: set[Labels] = set()
        self._reduced_for: frozenset[str] | None = None
        self._known: dict[str, Labels] = {}
        self._differing: list[str] = []  # services whose processes differ
        self._strategies: dict[tuple[object, ...], Strategy] = {}
        self._strategies_of: RuleBook | None = None
        self._made: dict[Labels | None, _Made] = {}  # by who asks, the ones asked for last at the end

    async def strategy(
        self, service: str, env: str = "", version: str = "", connection: Connection | None = None
    ) -> Strategy:
        """What Jaeger's remote sampling answers.

        Args:
            connection: by which the client asks. Where the processes of its service differ, it tells which one it is.
        """
        self.answers["jaeger"] += 1
        asked = Labels(service, version, env)
        known = [each for each in self._node.labels(service) if answers_to(each, asked)]
        if not self._differ(known):
            labels = min(known, default=asked)
        else:
            asker = await self._node.asker([service], connection) if connection is not None else None
            labels = asker if asker is not None and answers_to(asker, asked) else agreed(known, asked)
        return self._strategy(labels)

    async def xray(self, connection: Connection | None = None) -> XRayRules:
        """The rules as X-Ray has them.

        Args:
            connection: as of `strategy`.
        """
        self.answers["xray"] += 1
        async with self._lock:
            book, now = self._control.book, self._control.now()
            if not self._looked <= now < self._looked + _LABELS_S:
                self._labels, self._looked = self._node.labels(), now
                self._reduced_for = None
            names = self._names()
            if self._reduced_for != names:
                labels = {reduced(each, names) for each in self._labels}
                self._known, self._reduced_for = agreed_by_service(labels), names
                counts = Counter(each.service for each in labels)
                self._differing = [service for service in self._known if counts[service] > 1]
            asker = None
            if connection is not None and self._differing:
                found = await self._node.asker(self._differing, connection)
                asker = None if found is None else reduced(found, names)
            known = self._known if asker is None else {**self._known, asker.service: asker}
            made = self._made.pop(asker, None)
            if made is None or made.book is not book or made.known != known:
                # Thousands of rules and services take a while.
                made_rules = await asyncio.to_thread(xray_rules, book, known, self._default_rate)
                rules = {rule.name: rule for rule in made_rules}
                since = now if made is None or rules != made.answer.rules else made.answer.modified
                made = _Made(book, known, XRayRules(rules, since))
                self.reservoirs.tidy(now)
            self._made[asker] = made
            if len(self._made) > _MADE:
                del self._made[next(iter(self._made))]
            return made.answer

    def _strategy(self, labels: Labels) -> Strategy:
        """Made anew where the rules or the rates are others."""
        rates = {kind: self._node.rate(labels, kind) for kind in EntryKind}
        made_of = (labels, *rates.values())
        if self._strategies_of is not self._control.book:
            self._strategies_of = self._control.book
            self._strategies.clear()
        strategy = self._strategies.get(made_of)
        if strategy is None:
            if len(self._strategies) >= _STRATEGIES:
                self._strategies.clear()
            strategy = strategy_for(self._control.book, labels, rates.__getitem__, self._default_rate)
            self._strategies[made_of] = strategy
        return strategy

    def _differ(self, labels: Collection[Labels]) -> bool:
        """Whether any rule may tell these apart."""
        names = self._names() if len(labels) > 1 else frozenset()
        return bool(names) and len({reduced(each, names) for each in labels}) > 1

    def _names(self) -> frozenset[str]:
        """The labels that any rule looks at."""
        book = self._control.book
        if self._named is None or self._named[0] is not book:
            self._named = book, selected_by(book.rules)
        return self._named[1]
