"""Tenants' circuits: whose rules ask for much more than the quota, for long, is held at a low rate. Pure.

Any process may say that it is a tenant's. So a circuit is one user's part of a tenant: what the others ask for counts
against him up to their share of the quota and no further, and opens nobody's circuit but their own.
"""

from __future__ import annotations

from collections.abc import Mapping

from spandial_agent.steering.arrivals import Arrivals
from spandial_agent.steering.sharing import Asked, shares
from spandial_api.breaker import CLOSED, Circuit, Thresholds, step
from spandial_api.budgets import Limits
from spandial_api.node_states import TenantUse

__all__ = ["Circuits"]

_ORDER = ("closed", "half-open", "open")
_Part = tuple[str, int | None]  # a tenant and a user; None: whoever comes, after a restart


class Circuits:
    """All circuits, and the demand of each part of a tenant."""

    def __init__(self, thresholds: Thresholds) -> None:
        self._thresholds = thresholds
        self._demands: dict[_Part, Arrivals] = {}
        self._circuits: dict[_Part, Circuit] = {}

    def __bool__(self) -> bool:
        """Whether one is not closed."""
        return bool(self._circuits)

    def most(self, tenant: str, uid: int) -> float:
        """The percentage that no rate of a user's processes is above."""
        circuit = self._circuits.get((tenant, uid)) or self._circuits.get((tenant, None), CLOSED)
        return self._thresholds.rate if tenant and circuit.state == "open" else 100.0

    def step(self, demands: Mapping[tuple[str, int], float], limits: Limits, seconds: float) -> None:
        """Go on by what was asked for in a window, in kept entries a second."""
        self._demands = {part: self._demands.get(part) or Arrivals() for part in demands if part[0]}
        for part, arrivals in self._demands.items():
            arrivals.add(demands[part[0], part[1] or 0] * seconds, seconds)
        self._hand_over()
        circuits = {}
        for part in {*self._demands, *self._circuits}:
            quota = limits.quota_of(part[0])
            if quota is not None:
                circuit = step(
                    self._circuits.get(part, CLOSED), self._counted(part, quota), quota, seconds, self._thresholds
                )
                if circuit != CLOSED:
                    circuits[part] = circuit
        self._circuits = circuits

    def limit(self, limits: Limits) -> None:
        """What these no longer limit has no circuit."""
        self._circuits = {
            part: circuit for part, circuit in self._circuits.items() if limits.quota_of(part[0]) is not None
        }

    def forget_demands(self) -> None:
        self._demands = {}

    @property
    def by_tenant(self) -> dict[str, Circuit]:
        """Of each tenant as a whole: what all its users' circuits have passed. Closed ones are left out."""
        found = {}
        for tenant in {tenant for tenant, _ in self._circuits}:
            parts = [self._circuits.get(part, CLOSED) for part in self._parts(tenant)]
            least = min(parts, key=lambda circuit: (_ORDER.index(circuit.state), circuit.lasted or 0.0))
            if least != CLOSED:
                found[tenant] = least
        return found

    def restore(self, circuits: Mapping[str, Circuit]) -> None:
        """Go on with these, for whoever comes."""
        self._circuits = {(tenant, None): circuit for tenant, circuit in circuits.items() if circuit != CLOSED}

    def uses(self, limits: Limits) -> list[TenantUse]:
        uses, whole = [], self.by_tenant
        for tenant in sorted({tenant for tenant, _ in (*self._demands, *self._circuits)}):
            quota = limits.quota_of(tenant)
            if quota is None:
                continue
            circuit = whole.get(tenant, CLOSED)
            alone = [
                uid
                for uid in (uid for _, uid in self._parts(tenant) if uid is not None)
                if circuit.state != "open" and self._circuits.get((tenant, uid), CLOSED).state == "open"
            ]
            demand = sum(arrivals.rate for part, arrivals in self._demands.items() if part[0] == tenant)
            uses.append(
                TenantUse(
                    tenant=tenant,
                    quota=quota,
                    demand=demand,
                    circuit=circuit.state,
                    lasted=circuit.lasted,
                    open_for=sorted(alone),
                )
            )
        return uses

    def _parts(self, tenant: str) -> list[_Part]:
        return [part for part in {**self._demands, **self._circuits} if part[0] == tenant]

    def _counted(self, part: _Part, quota: float) -> float:
        """What a part's own demand comes to together with those of the others, each up to its share of the quota."""
        others = [other for other in self._parts(part[0]) if other != part and other in self._demands]
        own = self._demands[part].rate if part in self._demands else 0.0
        if not others:
            return own
        rates = [own, *(self._demands[other].rate for other in others)]
        return own + sum(shares(quota, [Asked(rate) for rate in rates])[1:])

    def _hand_over(self) -> None:
        """Whoever has come takes over what was restored for his tenant."""
        for tenant, uid in list(self._demands):
            if (restored := self._circuits.get((tenant, None))) is not None:
                self._circuits.setdefault((tenant, uid), restored)
        for tenant, _ in self._demands:
            self._circuits.pop((tenant, None), None)
