"""What SDKs without the hook are told, in the protocols that they speak."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from typing import NamedTuple

from spandial.labels import Labels
from spandial_api.control import Control
from spandial_api.jaeger import Strategy, strategy_for
from spandial_api.known import agreed, agreed_by_service
from spandial_api.node import Connection, Node
from spandial_api.rules import RuleBook
from spandial_api.xray import Reservoirs, XRayRule, xray_rules

__all__ = ["RemoteSampling", "XRayRules"]

_LABELS_S = 1.0  # processes come and go: so often it is looked who is there
_MEMORY_POLLS = 3  # a client that missed so many is gone


class XRayRules(NamedTuple):
    """The rules by name, in the order of their priorities, and since when they are these, in Unix time in seconds."""

    rules: dict[str, XRayRule]
    modified: float


class RemoteSampling:
    """The rules in force, for whoever asks by the name of a service.

    Args:
        default_rate: percentage where no rule is for a process.
        interval_s: how often X-Ray's clients are to ask.

    Attributes:
        answers: how many were given, by protocol.
        reservoirs: how X-Ray's clients share throughputs.
    """

    def __init__(self, control: Control, node: Node, default_rate: float = 100.0, interval_s: int = 10) -> None:
        self.answers: Counter[str] = Counter(jaeger=0, xray=0)
        self.interval_s = interval_s
        self.quota_ttl_s = interval_s * _MEMORY_POLLS
        self.reservoirs = Reservoirs(self.quota_ttl_s)
        self._control = control
        self._node = node
        self._default_rate = default_rate
        self._lock = asyncio.Lock()
        self._made_of: tuple[RuleBook, dict[str, Labels]] | None = None
        self._looked = -math.inf
        self._xray = XRayRules({}, 0.0)

    async def strategy(
        self, service: str, env: str = "", version: str = "", connection: Connection | None = None
    ) -> Strategy:
        """What Jaeger's remote sampling answers.

        Args:
            connection: by which the client asks. Where the processes of its service differ, it tells which one it is.
        """
        self.answers["jaeger"] += 1
        asked, known = Labels(service, version, env), self._node.labels(service)
        labels = agreed(known, asked)
        if connection is not None and asked == Labels(service) and len(known) > 1:
            labels = await self._node.asker(service, connection) or labels
        return strategy_for(self._control.book, labels, lambda kind: self._node.rate(labels, kind), self._default_rate)

    async def xray(self) -> XRayRules:
        """The rules as X-Ray has them."""
        self.answers["xray"] += 1
        async with self._lock:
            book, now = self._control.book, self._control.now()
            known = self._made_of[1] if self._made_of is not None else {}
            if not self._looked <= now < self._looked + _LABELS_S:
                known, self._looked = agreed_by_service(self._node.labels()), now
            if self._made_of is None or self._made_of[0] is not book or self._made_of[1] != known:
                # Thousands of rules and services take a while.
                found = await asyncio.to_thread(xray_rules, book, known, self._default_rate)
                rules = {rule.name: rule for rule in found}
                if rules != self._xray.rules:
                    self._xray = XRayRules(rules, now)
                    self.reservoirs.retain(rules)
                self._made_of = book, known
            return self._xray
