"""A tenant's circuit breaker. Pure: demand and time are arguments.

The demand is what the tenant's processes would keep a second under the rules, whatever the breaker does to their rates:
else an open circuit would look as if all was well. It is looked at again and again.

- closed: the rules' rates. Becomes open once every look for `over_s` found the demand above `over` of the quota.
- open: no rate is above `rate`. Becomes half-open at a look that finds the demand below `under` of the quota.
- half-open: the rules' rates, tried again. Becomes open at a look that finds the demand above `over`; closed once every
  look for `under_s` found it below `under`.

A time begins with the first look that found it so, and begins anew after one that did not; between two looks all is
taken to be as at both. Time in which nobody looked does not count.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

__all__ = ["CLOSED", "Circuit", "CircuitState", "Thresholds", "step"]

CircuitState = Literal["closed", "open", "half-open"]


@dataclass(frozen=True)
class Thresholds:
    """When a circuit opens and closes.

    Attributes:
        over, under: percentages of the quota.
        over_s, under_s: seconds.
        rate: percentage that no rate of an open circuit is above.
    """

    over: float = 120.0
    over_s: float = 180.0
    under: float = 80.0
    under_s: float = 300.0
    rate: float = 1.0


@dataclass(frozen=True)
class Circuit:
    """A tenant's circuit.

    Attributes:
        lasted: seconds for which the demand has been above `over` (closed) or below `under` (half-open); None where the
            last look found it otherwise.
    """

    state: CircuitState = "closed"
    lasted: float | None = None


CLOSED = Circuit()


def step(circuit: Circuit, demand: float, quota: float, elapsed: float, thresholds: Thresholds) -> Circuit:
    """The circuit after one more look.

    Args:
        demand: kept entries a second under the rules.
        quota: kept entries a second that the tenant may have.
        elapsed: seconds since the last look.
    """
    over = demand > quota * thresholds.over / 100
    under = demand < quota * thresholds.under / 100
    lasted = 0.0 if circuit.lasted is None else circuit.lasted + elapsed
    if circuit.state == "closed":
        if not over:
            return CLOSED
        return Circuit("open") if lasted >= thresholds.over_s else replace(circuit, lasted=lasted)
    if circuit.state == "open":
        if not under:
            return circuit
        return CLOSED if thresholds.under_s == 0 else Circuit("half-open", 0.0)
    if over:
        return Circuit("open")
    if not under:
        return Circuit("half-open")
    return CLOSED if lasted >= thresholds.under_s else replace(circuit, lasted=lasted)
