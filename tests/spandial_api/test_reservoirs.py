"""Who shares a reservoir of AWS X-Ray's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spandial_api.reservoirs import Reservoirs
from spandial_api.xray import XRayRule

FULL = XRayRule("a", 1, "*", "*", "*", (), 0.0, 10)


def test_a_reservoir_is_shared_by_those_who_have_requests() -> None:
    reservoirs = Reservoirs(memory_s=30)
    assert reservoirs.quota(FULL, "x", 5, 0) == 10
    assert reservoirs.quota(FULL, "idle", 0, 0) == 5
    assert [reservoirs.quota(FULL, client, 5, 1) for client in "xyz"] == [10, 5, 3]
    assert [reservoirs.quota(FULL, client, 5, 2) for client in "xyz"] == [4, 3, 3]


def test_who_asks_no_more_leaves_his_share() -> None:
    reservoirs = Reservoirs(memory_s=30)
    for client in "xy":
        reservoirs.quota(FULL, client, 5, 0)
    assert reservoirs.quota(FULL, "x", 5, 30) == 5
    assert reservoirs.quota(FULL, "x", 5, 31) == 10


@given(st.integers(0, 50), st.integers(1, 60))
def test_no_more_is_given_than_there_is(size: int, clients: int) -> None:
    reservoirs, shared = Reservoirs(memory_s=30), FULL._replace(reservoir=size)
    for _ in range(2):
        quotas = [reservoirs.quota(shared, str(client), 1, 0) for client in range(clients)]
    assert sum(quotas) == size
    assert max(quotas) - min(quotas) <= 1


def test_clients_are_bounded_and_the_forgotten_counted() -> None:
    reservoirs = Reservoirs(memory_s=30, bound=3)
    for client in range(10):
        reservoirs.quota(FULL, str(client), 1, 0)
    assert reservoirs.forgotten == 7
    assert reservoirs.quota(FULL, "9", 1, 0) == 3


def test_rules_under_which_nobody_asks_are_forgotten() -> None:
    reservoirs = Reservoirs(memory_s=30)
    for name, now in (("old", 0), ("new", 1)):
        reservoirs.quota(FULL._replace(name=name), "x", 1, now)
    reservoirs.tidy(31)
    assert reservoirs.rules == {"new"}


def test_however_many_clients_a_peer_makes_up_they_share_what_is_his() -> None:
    reservoirs, shared = Reservoirs(memory_s=30), FULL._replace(reservoir=1000)
    assert reservoirs.quota(shared, "honest", 500, 0, "uid 1000") == 1000
    for number in range(5000):
        reservoirs.quota(shared, f"made-up-{number}", 1, 1, "uid 64321")
    assert reservoirs.quota(shared, "honest", 500, 2, "uid 1000") == 500
    assert reservoirs.quota(shared, "honest", 500, 32, "uid 1000") == 1000


def test_peers_that_are_too_many_share_what_one_has() -> None:
    reservoirs, shared = Reservoirs(memory_s=30, peers=4), FULL._replace(reservoir=1000)
    reservoirs.quota(shared, "honest", 500, 0, "uid 1000")
    for number in range(500):
        reservoirs.quota(shared, "x", 1, 0, f"10.0.0.{number}")
    assert reservoirs.quota(shared, "honest", 500, 0, "uid 1000") == 200


def test_of_one_peer_only_so_many_clients_are_remembered_under_all_rules() -> None:
    reservoirs = Reservoirs(memory_s=30, bound=50, in_all=100)
    assert reservoirs.quota(FULL._replace(name="r199"), "honest", 1, 0, "uid 1000") == 10
    for rule in range(200):
        for client in range(60):
            reservoirs.quota(FULL._replace(name=f"r{rule}"), str(client), 1, 0, "uid 64321")
    assert len(reservoirs) == 101
    assert reservoirs.quota(FULL._replace(name="r199"), "honest", 1, 0, "uid 1000") == 10
    reservoirs.tidy(100)
    assert len(reservoirs) == 0
    assert reservoirs.rules == set()


@pytest.mark.parametrize("peers", [1, 3, 7])
@given(size=st.integers(0, 50), clients=st.integers(1, 20))
def test_no_more_is_given_than_there_is_whoever_shares(peers: int, size: int, clients: int) -> None:
    reservoirs, shared = Reservoirs(memory_s=30), FULL._replace(reservoir=size)
    for _ in range(2):
        quotas = [
            reservoirs.quota(shared, str(client), 1, 0, str(peer)) for peer in range(peers) for client in range(clients)
        ]
    assert sum(quotas) == size
