"""The node's budget and the tenants' quotas: obeyed at once, and on disk before they are answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from spandial_api.audit import Action, LimitChange
from spandial_api.breaker import Circuit
from spandial_api.budgets import Limits
from spandial_api.control import Author, Control
from spandial_api.node import Node
from spandial_api.store import StoreError

__all__ = ["QUOTAS_MAX", "Guard", "TooManyQuotas", "Written"]

QUOTAS_MAX = 1000
_LIMITS, _CIRCUITS = "limits", "circuits"
_LOOK_S = 1.0
_TIMES_S = 30.0  # how old the stored time of a circuit may be
_STATES = ("closed", "open", "half-open")


@dataclass(frozen=True)
class Written:
    """A limit that somebody wrote.

    Attributes:
        time: Unix time in seconds.
    """

    entries: float
    time: float
    who: str
    why: str


class TooManyQuotas(Exception):
    """There are as many quotas as there may be. Nothing was changed."""


class Guard:
    """Budget, quotas and the state of the circuits, with the store and the node.

    Args:
        defaults: what holds where nobody wrote anything.

    Attributes:
        budget: as it was written; None where it was not.
        quotas: those that were written, by tenant.
    """

    def __init__(self, control: Control, node: Node, defaults: Limits) -> None:
        self.defaults = defaults
        self.budget: Written | None = None
        self.quotas: dict[str, Written] = {}
        self._control = control
        self._node = node
        self._lock = asyncio.Lock()
        self._stored: dict[str, Circuit] = {}
        with suppress(StoreError):  # the rules' store says so already
            self._load()
        node.limit(self.limits)

    @property
    def limits(self) -> Limits:
        """What is obeyed."""
        return replace(
            self.defaults,
            budget=self.defaults.budget if self.budget is None else self.budget.entries,
            quotas={tenant: quota.entries for tenant, quota in self.quotas.items()},
        )

    async def set_budget(self, entries: float | None, author: Author) -> None:
        """None: the default again. Raises StoreError, nothing changed."""
        written = None if entries is None else self._written(entries, author)
        await asyncio.shield(self._change(lambda: (written, self.quotas), "budget", None, author))

    async def set_quota(self, tenant: str, entries: float | None, author: Author) -> None:
        """None: the default again. Raises KeyError where there is none to remove, TooManyQuotas, StoreError, nothing
        changed."""

        def change() -> tuple[Written | None, dict[str, Written]]:
            if entries is not None:
                return self.budget, {**self.quotas, tenant: self._written(entries, author)}
            if tenant not in self.quotas:
                raise KeyError(tenant)
            return self.budget, {name: quota for name, quota in self.quotas.items() if name != tenant}

        await asyncio.shield(self._change(change, "quota", tenant, author))

    async def run(self) -> None:
        """Store the circuits when they change, until cancelled."""
        since = 0.0
        while True:
            await asyncio.sleep(_LOOK_S)
            since += _LOOK_S
            circuits = self._node.circuits()
            states = {tenant: circuit.state for tenant, circuit in circuits.items()}
            stored = {tenant: circuit.state for tenant, circuit in self._stored.items()}
            if states == stored and (circuits == self._stored or since < _TIMES_S):
                continue
            since = 0.0
            with suppress(StoreError):  # it is tried again
                body = {tenant: [circuit.state, circuit.lasted] for tenant, circuit in circuits.items()}
                await self._control.keep(_CIRCUITS, body)
                self._stored = circuits

    def _written(self, entries: float, author: Author) -> Written:
        return Written(entries, self._control.now(), author.who, author.why)

    async def _change(
        self,
        make: Callable[[], tuple[Written | None, dict[str, Written]]],
        action: Action,
        tenant: str | None,
        author: Author,
    ) -> None:
        """Budget and quotas are stored together: what is to become of them is made of what they are by then."""
        async with self._lock:
            budget, quotas = make()
            if len(quotas) > max(QUOTAS_MAX, len(self.quotas)):
                raise TooManyQuotas
            body = {
                "budget": None if budget is None else vars(budget),
                "quotas": {tenant: vars(written) for tenant, written in quotas.items()},
            }
            before, after = (self.budget, budget) if tenant is None else (self.quotas.get(tenant), quotas.get(tenant))
            entries = [None if written is None else written.entries for written in (before, after)]
            await self._control.keep_limit(_LIMITS, body, action, LimitChange(tenant, *entries), author)
            self.budget, self.quotas = budget, quotas
            self._node.limit(self.limits)

    def _load(self) -> None:
        """What this version cannot read is as if it were not there."""
        limits, circuits = self._control.document(_LIMITS), self._control.document(_CIRCUITS)
        with suppress(TypeError, ValueError, AttributeError, KeyError):
            self.budget = None if limits["budget"] is None else _parsed(limits["budget"])
            self.quotas = {str(tenant): _parsed(written) for tenant, written in limits["quotas"].items()}
        with suppress(TypeError, ValueError, AttributeError, KeyError):
            self._stored = {str(tenant): _circuit(*told) for tenant, told in circuits.items()}
            self._node.restore(self._stored)


def _parsed(written: Any) -> Written:
    return Written(float(written["entries"]), float(written["time"]), str(written["who"]), str(written["why"]))


def _circuit(state: Any, lasted: Any) -> Circuit:
    if state not in _STATES:
        raise ValueError(f"a circuit is not {state!r}")
    return Circuit(state, None if lasted is None else float(lasted))
