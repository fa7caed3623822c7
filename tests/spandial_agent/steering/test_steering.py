"""Steering, on processes whose counts follow the words that they are given."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from spandial.abi import EntryKind, Mode, word_rate
from spandial.labels import Labels
from spandial_agent.capture.counts import Counts
from spandial_agent.processes.proc import Process
from spandial_agent.steering.steering import Steering
from spandial_agent.table.rates import RateTable
from spandial_agent.targets.target import Target
from spandial_agent.targets.targets import Targets
from spandial_api.breaker import Circuit, Thresholds
from spandial_api.budgets import Limits
from spandial_api.rules import Rule
from spandial_api.selectors import Selector
from tests.spandial_agent.fake_capture import FakeCapture

HTTP = EntryKind.HTTP
QUICK = Thresholds(over_s=3, under_s=5)


class Traffic:
    """Targets with a load each, and time.

    Attributes:
        loads: HTTP requests a second, by pid, none with a trace context; `parents` of them besides have a kept parent.
    """

    def __init__(self, targets: Targets, table: RateTable, capture: FakeCapture) -> None:
        self.targets, self.table, self.capture = targets, table, capture
        self.now = 0.0
        self.loads: dict[int, float] = {}
        self.parents: dict[int, float] = {}
        self.steering = Steering(targets, capture, self.publish, QUICK, lambda: self.now)  # type: ignore[arg-type]
        self.kept: dict[int, float] = {}
        self._left: dict[int, tuple[float, ...]] = {}

    async def publish(self, targets: Collection[Target]) -> None: ...

    def add(
        self,
        pid: int,
        load: float,
        service: str = "shop",
        tenant: str = "",
        env: str = "",
        kept: float = 0,
        uid: int = 0,
    ) -> Target:
        target = self.targets.discover(Process(pid, 1, "python", Labels(service, "1", env, tenant), uid=uid))
        assert target is not None
        self.loads[pid], self.parents[pid] = load, kept
        return target

    def rate(self, pid: int) -> float:
        target = self.targets.get(pid)
        assert target is not None
        return word_rate(self.table.backend.read(target.row.number)[HTTP]) or 0.0

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end - 1e-9:
            self.now += 0.5
            for target in self.targets:
                load, parents, rate = self.loads[target.pid], self.parents[target.pid], self.rate(target.pid) / 100
                self.kept[target.pid] = load * rate + parents
                self._count(target, (load + parents, load * rate + parents, parents, parents))
            self.steering.look()

    def _count(self, target: Target, came: tuple[float, ...]) -> None:
        exact = [a + b * 0.5 for a, b in zip(self._left.get(target.pid, (0.0,) * 4), came)]
        self._left[target.pid] = tuple(exact)
        zero = (0, 0, 0, 0)
        seen, kept, traced, traced_kept = ((0, round(count), 0, 0) for count in exact)
        self.capture.counted[target.row.number] = Counts(seen, kept, traced, traced_kept, zero, zero, zero)

    def apply(self, *rules: Rule) -> None:
        self.targets.apply(self.targets.book.change(rules))


@pytest.fixture
def traffic(targets: Targets, table: RateTable, capture: FakeCapture) -> Traffic:
    return Traffic(targets, table, capture)


def targeting(target: float, mode: Mode = Mode.FOLLOW, **selector: str) -> Rule:
    return Rule(Selector(**selector), None, mode, target=target)  # type: ignore[arg-type]


def near(value: float) -> object:
    return pytest.approx(value, rel=0.1)


def test_a_target_is_met_by_all_processes_of_a_service_together_and_for_each_service(traffic: Traffic) -> None:
    traffic.add(1, 1000)
    traffic.add(2, 3000)
    traffic.add(3, 500, service="cart")
    traffic.apply(targeting(100))
    traffic.run(5)
    assert traffic.kept[1] + traffic.kept[2] == near(100)
    assert traffic.rate(1) == traffic.rate(2)
    assert traffic.kept[3] == near(100)


def test_a_tenfold_step_is_met_within_three_seconds(traffic: Traffic) -> None:
    traffic.add(1, 500)
    traffic.apply(targeting(100))
    traffic.run(10)
    for load in (5000, 500):
        traffic.loads[1] = load
        traffic.run(3)
        traffic.run(0.5)
        assert traffic.kept[1] == near(100)


def test_a_new_rule_begins_at_one_percent_or_with_what_was_just_counted(traffic: Traffic) -> None:
    traffic.add(1, 4000)
    traffic.add(2, 500, service="cart")
    traffic.apply(targeting(10, service="shop"))
    assert traffic.rate(1) == near(1)
    traffic.run(5)
    traffic.apply(targeting(100, service="cart"))
    assert traffic.rate(2) == near(20)
    traffic.apply(targeting(200, service="shop", version="1"))
    assert traffic.rate(1) == near(5)


def test_a_changed_rule_counts_at_once(traffic: Traffic) -> None:
    traffic.add(1, 4000)
    traffic.apply(targeting(100))
    traffic.run(5)
    traffic.apply(targeting(400))
    assert traffic.rate(1) == near(10)
    traffic.apply(Rule(Selector(), 30))
    assert traffic.rate(1) == near(30)
    traffic.run(5)
    assert traffic.rate(1) == near(30)


def test_what_parents_keep_counts_towards_the_target(traffic: Traffic) -> None:
    traffic.add(1, 1000, kept=60)
    traffic.apply(targeting(100))
    traffic.run(5)
    assert traffic.rate(1) == near(4)
    assert traffic.kept[1] == near(100)


def test_a_budget_is_shared_max_min_and_comes_back_by_itself(traffic: Traffic) -> None:
    for pid, load in ((1, 10), (2, 1000), (3, 400)):
        traffic.add(pid, load)
    traffic.apply(Rule(Selector(), 50))
    traffic.steering.limit(Limits(budget=105))
    traffic.run(5)
    assert traffic.rate(1) == 50
    assert traffic.kept[2] == near(50)
    assert traffic.kept[3] == near(50)
    assert traffic.steering.budget_use.limited == 2
    assert traffic.steering.budget_use.demand == near(705)
    traffic.loads |= {2: 50, 3: 40}
    traffic.run(8)
    assert [traffic.rate(pid) for pid in (1, 2, 3)] == [50, 50, 50]
    assert traffic.steering.budget_use.limited == 0


def test_a_budget_holds_processes_without_a_rule_too(traffic: Traffic) -> None:
    target = traffic.add(1, 1000)
    assert word_rate(target.default) == pytest.approx(100)
    traffic.steering.limit(Limits(budget=100))
    traffic.run(5)
    assert traffic.kept[1] == near(100)


def test_what_parents_keep_is_not_cut_and_is_missing_elsewhere(traffic: Traffic) -> None:
    traffic.add(1, 1000, kept=80)
    traffic.add(2, 1000)
    traffic.apply(Rule(Selector(), 50))
    traffic.steering.limit(Limits(budget=100))
    traffic.run(6)
    assert traffic.kept[1] == near(80)
    assert traffic.kept[2] == near(20)


def test_a_budget_and_a_target_hold_together(traffic: Traffic) -> None:
    traffic.add(1, 10_000)
    traffic.add(2, 10_000, service="cart")
    traffic.apply(targeting(100))
    traffic.steering.limit(Limits(budget=60))
    traffic.run(8)
    assert traffic.kept[1] == near(30)
    traffic.steering.limit(Limits())
    assert traffic.rate(1) == near(1)
    traffic.run(2)
    assert traffic.kept[1] == near(100)


def test_a_limit_that_is_taken_away_ends_at_once(traffic: Traffic) -> None:
    traffic.add(1, 1000)
    traffic.apply(Rule(Selector(), 50))
    traffic.steering.limit(Limits(budget=10))
    traffic.run(3)
    assert traffic.rate(1) == near(1)
    traffic.steering.limit(Limits())
    assert traffic.rate(1) == 50


def test_a_tenant_over_its_quota_is_held_until_it_asks_for_less(traffic: Traffic) -> None:
    traffic.add(1, 1000, tenant="acme")
    traffic.add(2, 1000, tenant="other")
    traffic.apply(Rule(Selector(), 50))
    traffic.steering.limit(Limits(quotas={"acme": 100}))
    traffic.run(3)
    assert traffic.rate(1) == 50
    traffic.run(2)
    assert traffic.steering.circuits == {"acme": Circuit("open")}
    traffic.run(20)
    assert (traffic.rate(1), traffic.rate(2)) == (near(1), 50)
    [use] = traffic.steering.tenant_uses
    assert (use.tenant, use.quota, use.circuit) == ("acme", 100, "open")
    assert use.demand == near(500)  # under its rules: an open circuit is no good health
    traffic.loads[1] = 100
    traffic.run(3)
    assert traffic.steering.circuits["acme"].state == "half-open"
    assert traffic.rate(1) == 50
    traffic.run(6)
    assert traffic.steering.circuits == {}
    assert traffic.rate(1) == 50


def test_half_open_it_opens_again_at_once(traffic: Traffic) -> None:
    traffic.add(1, 100, tenant="acme")
    traffic.apply(Rule(Selector(), 50))
    traffic.steering.restore({"acme": Circuit("open")})
    traffic.steering.limit(Limits(quota=100))
    traffic.run(2)
    assert traffic.steering.circuits["acme"].state == "half-open"
    traffic.loads[1] = 1000
    traffic.run(1.5)
    assert traffic.steering.circuits == {"acme": Circuit("open")}
    assert traffic.rate(1) == near(1)


def test_a_boost_of_an_open_circuit_is_held_too(traffic: Traffic) -> None:
    traffic.add(1, 1000, tenant="acme")
    traffic.apply(Rule(Selector(), 100, Mode.BOOST))
    traffic.steering.restore({"acme": Circuit("open")})
    traffic.steering.limit(Limits(quota=100))
    assert traffic.rate(1) == near(1)
    traffic.run(5)
    assert traffic.rate(1) == near(1)


def test_without_a_quota_a_circuit_is_closed(traffic: Traffic) -> None:
    traffic.add(1, 1000, tenant="acme")
    traffic.steering.restore({"acme": Circuit("open")})
    traffic.steering.limit(Limits(quotas={"other": 1}))
    assert traffic.steering.circuits == {}


def test_processes_come_and_go(traffic: Traffic, targets: Targets) -> None:
    traffic.apply(targeting(100))
    traffic.steering.limit(Limits(budget=150, quota=1000))
    for pid in range(1, 40):
        traffic.add(pid, 1000, service=f"s{pid % 3}", tenant="acme")
        traffic.run(0.5)
        if pid > 3:
            targets.remove(pid - 3)
    traffic.run(4)
    assert sum(traffic.kept[target.pid] for target in targets) == near(150)
    assert len(traffic.steering._rules) == 3
    assert targets.limits.keys() <= {target.pid for target in targets}


@pytest.mark.anyio
async def test_counts_that_cannot_be_read_leave_the_rates_as_they_are(
    traffic: Traffic, capture: FakeCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_rows: Collection[int]) -> list[int]:
        raise OSError(12, "bpf_map_lookup_batch")

    traffic.add(1, 10_000)
    traffic.apply(targeting(100))
    traffic.run(5)
    rate = traffic.rate(1)
    monkeypatch.setattr("spandial_agent.steering.steering.asyncio.sleep", lambda seconds: _stop())
    with monkeypatch.context() as failing:
        failing.setattr(capture, "tallies", fails)
        with pytest.raises(StopAsyncIteration):
            await traffic.steering.run()
    assert traffic.rate(1) == rate
    traffic.run(2)
    assert traffic.rate(1) == near(rate)


def test_a_standstill_of_the_agent_is_no_silence(traffic: Traffic) -> None:
    traffic.add(1, 10_000)
    traffic.apply(targeting(100))
    traffic.run(5)
    rate = traffic.rate(1)
    traffic.now += 60
    traffic.run(2)
    assert traffic.rate(1) == near(rate)


@pytest.mark.anyio
async def test_a_node_that_is_off_is_no_silence(traffic: Traffic, monkeypatch: pytest.MonkeyPatch) -> None:
    traffic.add(1, 10_000)
    traffic.apply(targeting(100))
    traffic.run(5)
    rate = traffic.rate(1)
    monkeypatch.setattr("spandial_agent.steering.steering.asyncio.sleep", lambda seconds: _stop())
    traffic.steering.paused = True
    for _ in range(600):
        traffic.now += 0.5
        with pytest.raises(StopAsyncIteration):
            await traffic.steering.run()
    assert traffic.rate(1) == rate
    traffic.steering.paused = False
    traffic.run(2)
    assert traffic.rate(1) == near(rate)


@pytest.mark.anyio
async def test_where_nothing_is_steered_nothing_is_read(
    traffic: Traffic, capture: FakeCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    monkeypatch.setattr("spandial_agent.steering.steering.asyncio.sleep", lambda seconds: _stop())
    monkeypatch.setattr(traffic.steering, "look", lambda: looked.append("look"))
    traffic.add(1, 1000)
    with pytest.raises(StopAsyncIteration):
        await traffic.steering.run()
    assert looked == []
    traffic.apply(targeting(100))
    with pytest.raises(StopAsyncIteration):
        await traffic.steering.run()
    assert looked == ["look"]


async def _stop() -> None:
    raise StopAsyncIteration
