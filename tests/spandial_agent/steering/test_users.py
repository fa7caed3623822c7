"""What one user's processes claim, and what it does to those of others: any process may give itself any name."""

from __future__ import annotations

import pytest

from spandial_agent.steering.circuits import Circuits
from spandial_agent.table.rates import RateTable
from spandial_agent.targets.targets import Targets
from spandial_api.breaker import Circuit, Thresholds
from spandial_api.budgets import Limits
from tests.spandial_agent.fake_capture import FakeCapture
from tests.spandial_agent.steering.test_steering import QUICK, Traffic, near, targeting

HONEST, LIAR = 1000, 64321


@pytest.fixture
def traffic(targets: Targets, table: RateTable, capture: FakeCapture) -> Traffic:
    return Traffic(targets, table, capture)


def test_a_flood_under_anothers_name_leaves_its_rate_as_it_was(traffic: Traffic) -> None:
    traffic.add(1, 400, uid=HONEST)
    traffic.apply(targeting(1000))
    traffic.run(10)
    assert traffic.rate(1) == near(100)
    traffic.add(2, 1e6, uid=LIAR)
    traffic.run(20)
    assert traffic.rate(1) == near(100)
    assert traffic.kept[1] + traffic.kept[2] == near(1000)


def test_users_of_a_service_share_its_target_and_none_falls_below_his_share(traffic: Traffic) -> None:
    traffic.add(1, 2000, uid=HONEST)
    traffic.add(2, 8000, uid=LIAR)
    traffic.apply(targeting(100))
    traffic.run(20)
    assert traffic.kept[1] == near(50)
    assert traffic.kept[2] == near(50)
    traffic.targets.remove(2)
    traffic.run(5)
    assert traffic.kept[1] == near(100)


def test_a_flood_under_a_tenants_name_opens_the_circuit_of_its_own_user_alone(traffic: Traffic) -> None:
    traffic.add(1, 400, tenant="acme", uid=HONEST)
    traffic.add(2, 1e6, tenant="acme", uid=LIAR)
    traffic.steering.limit(Limits(quota=2000))
    traffic.run(10)
    assert (traffic.rate(1), traffic.rate(2)) == (near(100), near(QUICK.rate))
    [use] = traffic.steering.tenant_uses
    assert (use.circuit, use.open_for) == ("closed", [LIAR])
    assert traffic.steering.circuits == {}


def test_honest_users_who_are_over_a_quota_together_are_held_together(traffic: Traffic) -> None:
    traffic.add(1, 1500, tenant="acme", uid=1000)
    traffic.add(2, 1500, tenant="acme", uid=1001)
    traffic.steering.limit(Limits(quota=2000))
    traffic.run(10)
    assert (traffic.rate(1), traffic.rate(2)) == (near(QUICK.rate), near(QUICK.rate))
    [use] = traffic.steering.tenant_uses
    assert (use.circuit, use.open_for, use.demand) == ("open", [], near(3000))
    assert traffic.steering.circuits["acme"].state == "open"


def test_a_flood_takes_no_more_than_its_users_share_of_the_budget(traffic: Traffic) -> None:
    traffic.add(1, 400, service="honest", uid=HONEST)
    for pid in range(2, 30):
        traffic.add(pid, 1e5, uid=LIAR)
    traffic.steering.limit(Limits(budget=1000))
    traffic.run(20)
    assert traffic.rate(1) == near(100)
    assert sum(traffic.kept.values()) == near(1000)


def test_an_open_circuit_outlives_a_restart_for_whoever_comes_and_closes_for_each_alone() -> None:
    circuits = Circuits(Thresholds(over_s=3, under_s=2))
    circuits.restore({"acme": Circuit("open")})
    assert circuits.most("acme", HONEST) == circuits.most("acme", LIAR) < 100
    limits = Limits(quota=1000)
    for _ in range(10):
        circuits.step({("acme", HONEST): 10.0, ("acme", LIAR): 1e6}, limits, 1.0)
    assert circuits.by_tenant["acme"].state == "open"  # the flood counts up to its share
    for _ in range(10):
        circuits.step({("acme", HONEST): 10.0, ("acme", LIAR): 100.0}, limits, 1.0)
    assert circuits.most("acme", HONEST) == 100
