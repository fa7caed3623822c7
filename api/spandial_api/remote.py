"""What SDKs without the hook are told, in the protocols that they speak."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Collection, Mapping
from typing import NamedTuple

from spandial.abi import EntryKind
from spandial.labels import Labels
from spandial_api.control import Control
from spandial_api.jaeger import Strategy, strategy_for
from spandial_api.known import agreed, agreed_by_service, answers_to, reduced, selected_by
from spandial_api.node import Asker, Connection, Node
from spandial_api.reservoirs import Reservoirs
from spandial_api.rules import RuleBook
from spandial_api.slices import Slices
from spandial_api.turns import TurnLock
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


class _Known(NamedTuple):
    """What some processes agree on, by service, and the services whose processes differ."""

    labels: dict[str, Labels]
    differing: tuple[str, ...]


class _Made(NamedTuple):
    """An answer, what it was made of, and who has asked for it last."""

    book: RuleBook
    known: dict[str, Labels]
    answer: XRayRules
    peer: str


_NOTHING = _Known({}, ())


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
        self._making = TurnLock()
        self._looked = -math.inf
        self._named: tuple[RuleBook, frozenset[str]] | None = None
        self._labels: Mapping[int, set[Labels]] = {}
        self._reduced_for: frozenset[str] | None = None
        self._known = _NOTHING
        self._known_of: dict[int, _Known] = {}  # by user
        self._strategies: dict[tuple[object, ...], Strategy] = {}
        self._strategies_of: RuleBook | None = None
        # By what the asker's processes have otherwise than all; the ones asked for last at the end.
        self._made: dict[frozenset[tuple[str, Labels]], _Made] = {}

    async def strategy(
        self,
        service: str,
        env: str = "",
        version: str = "",
        connection: Connection | None = None,
        uid: int | None = None,
    ) -> Strategy:
        """What Jaeger's remote sampling answers.

        Args:
            connection: by which the client asks. Where the processes of its service differ, it tells which one it is.
            uid: the client's user, where he is known: what other users' processes claim, and what rates they have, is
                nothing to him.
        """
        self.answers["jaeger"] += 1
        labels, user = await self._who(Labels(service, version, env), connection, uid)
        return self._strategy(labels, user)

    async def _who(self, asked: Labels, connection: Connection | None, uid: int | None) -> tuple[Labels, int | None]:
        """Whose rates are asked for: the labels, and the user where he can be told."""
        by_user = self._node.labels(asked.service)
        by_user = {user: {each for each in all_ if answers_to(each, asked)} for user, all_ in by_user.items()}
        users = {user for user, labels in by_user.items() if labels}
        if uid in users:
            users = {uid}
        known = set().union(*(by_user[user] for user in users))
        differ = self._differ(known)
        if connection is not None and uid in (None, *users) and (differ or len(users) > 1):
            asker = await self._node.asker([asked.service], connection, uid)
            if asker is not None and answers_to(asker.labels, asked):
                return asker.labels, asker.uid
        return agreed(known, asked) if differ else min(known, default=asked), uid

    async def xray(self, connection: Connection | None = None, uid: int | None = None) -> XRayRules:
        """The rules as X-Ray has them.

        Args:
            connection, uid: as of `strategy`.
        """
        self.answers["xray"] += 1
        # First, as it may take a while: nobody else is to wait for it.
        asker = await self._asker(connection, uid)
        peer = _peer(connection, uid)
        made = self._remembered(asker, uid, peer)
        if made is None:
            # Thousands of rules and services take a while, too: one at a time, the peers in turn.
            async with self._making.turn(peer):
                made = self._remembered(asker, uid, peer) or await self._make(asker, uid, peer)
        return made.answer

    async def _asker(self, connection: Connection | None, uid: int | None) -> Asker | None:
        """Who asks, where the processes of the asker's user differ."""
        self._look_around()
        known = self._known if uid is None else self._known_of.get(uid, _NOTHING)
        if connection is None or not known.differing:
            return None
        return await self._node.asker(known.differing, connection, uid)

    def _look_around(self) -> None:
        """Who is there, once a second, and what they agree on."""
        now, names = self._control.now(), self._names()
        if not self._looked <= now < self._looked + _LABELS_S:
            self._labels, self._looked = self._node.labels(), now
            self._reduced_for = None
        if self._reduced_for != names:
            by_user = {user: {reduced(each, names) for each in labels} for user, labels in self._labels.items()}
            self._known_of = {user: _known(labels) for user, labels in by_user.items()}
            self._known, self._reduced_for = _known(set().union(*by_user.values())), names

    def _known_to(self, asker: Asker | None, uid: int | None) -> dict[str, Labels]:
        """What all agree on, and instead what the asker's user's processes agree on, or the asker itself says."""
        self._look_around()
        own = self._known_of.get(uid, _NOTHING).labels if uid is not None else {}
        itself = {} if asker is None else {asker.labels.service: reduced(asker.labels, self._names())}
        return {**self._known.labels, **own, **itself}

    def _key(self, known: dict[str, Labels]) -> frozenset[tuple[str, Labels]]:
        return frozenset(known.items() - self._known.labels.items())

    def _remembered(self, asker: Asker | None, uid: int | None, peer: str) -> _Made | None:
        """The answer, if it has been made already and of what is so now."""
        known = self._known_to(asker, uid)
        key = self._key(known)
        made = self._made.get(key)
        if made is None or made.book is not self._control.book or made.known != known:
            return None
        self._keep(key, made._replace(peer=peer))
        return made

    async def _make(self, asker: Asker | None, uid: int | None, peer: str) -> _Made:
        known, book, now = self._known_to(asker, uid), self._control.book, self._control.now()
        key = self._key(known)
        made_rules = await asyncio.to_thread(xray_rules, book, known, self._default_rate)
        rules = {rule.name: rule for rule in made_rules}
        before = self._made.get(key)
        since = now if before is None or rules != before.answer.rules else before.answer.modified
        made = _Made(book, known, XRayRules(rules, since), peer)
        self._keep(key, made)
        self.reservoirs.tidy(now)
        return made

    def _keep(self, key: frozenset[tuple[str, Labels]], made: _Made) -> None:
        """Remember an answer, and not too many: of the peer who has most, the one that was asked for first goes."""
        self._made.pop(key, None)
        self._made[key] = made
        if len(self._made) > _MADE:
            most, _ = Counter(each.peer for each in self._made.values()).most_common(1)[0]
            del self._made[next(key for key, each in self._made.items() if each.peer == most)]

    def _strategy(self, labels: Labels, uid: int | None) -> Strategy:
        """Made anew where the rules or the rates are others."""
        rates = {kind: self._node.rate(labels, kind, uid) for kind in EntryKind}
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


def _peer(connection: Connection | None, uid: int | None) -> str:
    """For whom shares are counted."""
    if connection is not None:
        return connection.sharer
    return "somewhere" if uid is None else f"uid {uid}"


def _known(labels: set[Labels]) -> _Known:
    counts = Counter(each.service for each in labels)
    agreed_on = agreed_by_service(labels)
    return _Known(agreed_on, tuple(service for service in agreed_on if counts[service] > 1))
