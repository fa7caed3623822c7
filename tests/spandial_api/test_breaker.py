"""A tenant's circuit breaker."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from spandial_api.breaker import CLOSED, Circuit, Thresholds, step

QUOTA = 100.0


def run(circuit: Circuit, demand: float, seconds: int, thresholds: Thresholds | None = None) -> Circuit:
    """A look each second."""
    for _ in range(seconds):
        circuit = step(circuit, demand, QUOTA, 1.0, thresholds or Thresholds())
    return circuit


def test_three_minutes_over_120_percent_open_it() -> None:
    circuit = run(CLOSED, 121, 180)
    assert circuit == Circuit("closed", 179)
    assert run(circuit, 121, 1) == Circuit("open")


def test_120_percent_exactly_is_not_over_and_begins_the_time_anew() -> None:
    assert run(run(run(CLOSED, 121, 179), 120, 1), 121, 179).state == "closed"


def test_an_open_circuit_stays_open_until_the_demand_is_under_80_percent() -> None:
    assert run(Circuit("open"), 80, 10_000) == Circuit("open")
    assert run(Circuit("open"), 79, 1) == Circuit("half-open", 0)


def test_five_minutes_under_80_percent_close_it() -> None:
    circuit = run(Circuit("open"), 79, 300)
    assert circuit == Circuit("half-open", 299)
    assert run(circuit, 79, 1) == CLOSED


def test_half_open_it_opens_at_once_over_120_percent() -> None:
    assert run(run(Circuit("open"), 79, 200), 121, 1) == Circuit("open")


def test_half_open_it_waits_between_80_and_120_percent_and_the_time_begins_anew() -> None:
    circuit = run(run(Circuit("open"), 79, 200), 100, 1000)
    assert circuit == Circuit("half-open", None)
    assert run(circuit, 79, 300).state == "half-open"
    assert run(circuit, 79, 301) == CLOSED


def test_every_figure_is_configurable() -> None:
    thresholds = Thresholds(over=200, over_s=2, under=50, under_s=3)
    circuit = run(CLOSED, 199, 100, thresholds)
    assert circuit == CLOSED
    circuit = run(circuit, 201, 3, thresholds)
    assert circuit == Circuit("open")
    assert run(circuit, 50, 10, thresholds) == Circuit("open")
    assert run(circuit, 49, 4, thresholds) == CLOSED


def test_thresholds_without_time_act_at_once() -> None:
    thresholds = Thresholds(over_s=0, under_s=0)
    assert step(CLOSED, 121, QUOTA, 1, thresholds) == Circuit("open")
    assert step(Circuit("open"), 79, QUOTA, 1, thresholds) == CLOSED


@dataclass
class Naive:
    """The same from all looks there were: for each, the moment and the demand."""

    thresholds: Thresholds
    state: str = "closed"
    entered: int = 0
    looks: list[tuple[float, float]] = field(default_factory=list)

    def look(self, now: float, demand: float) -> None:
        t = self.thresholds
        self.looks.append((now, demand / QUOTA * 100))
        if self.state == "closed" and self._held(lambda share: share > t.over) >= t.over_s:
            self._enter("open")
        elif self.state == "open" and self.looks[-1][1] < t.under:
            self._enter("half-open")
            self.looks.append(self.looks[-1])  # the look that half-opened it counts
            self._close()
        elif self.state == "half-open" and self.looks[-1][1] > t.over:
            self._enter("open")
        elif self.state == "half-open":
            self._close()

    def _close(self) -> None:
        if self._held(lambda share: share < self.thresholds.under) >= self.thresholds.under_s:
            self._enter("closed")

    def _enter(self, state: str) -> None:
        self.state, self.entered = state, len(self.looks)

    def _held(self, holds: object) -> float:
        """For how long it has been so, in this state; -1 where it is not."""
        assert callable(holds)
        lasted = -1.0
        for now, share in reversed(self.looks[self.entered :]):
            if not holds(share):
                break
            lasted = self.looks[-1][0] - now
        return lasted


LOOKS = st.lists(st.tuples(st.integers(1, 90), st.sampled_from([0, 50, 79, 80, 81, 100, 119, 120, 121, 500])))
THRESHOLDS = st.builds(
    Thresholds,
    over=st.just(120.0),
    under=st.just(80.0),
    over_s=st.sampled_from([0.0, 60.0, 180.0]),
    under_s=st.sampled_from([0.0, 60.0, 300.0]),
)


@given(LOOKS, THRESHOLDS)
def test_it_does_what_a_model_with_all_looks_does(looks: list[tuple[int, int]], thresholds: Thresholds) -> None:
    circuit, naive, now = CLOSED, Naive(thresholds), 0.0
    for elapsed, demand in looks:
        now += elapsed
        circuit = step(circuit, demand, QUOTA, elapsed, thresholds)
        naive.look(now, demand)
        assert circuit.state == naive.state
