"""The lease, and the event loop that it depends on."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from spandial import abi
from spandial_agent.table.lease import LeaseKeeper
from spandial_agent.table.rates import RateTable
from tests.agent_process import eventually


def ends(table: RateTable) -> int:
    return table.backend.read(abi.HEADER_ROW)[abi.HEADER_LEASE]


def now() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@pytest.fixture
def keeper(table: RateTable) -> Iterator[LeaseKeeper]:
    keeper = LeaseKeeper(table, 0.2, silent_s=3600)
    keeper.start()
    yield keeper
    keeper.stop()


def test_the_lease_is_renewed_while_the_event_loop_is_late(table: RateTable, keeper: LeaseKeeper) -> None:
    begun = ends(table)
    eventually(lambda: ends(table) > begun + 10**9, "it is renewed again and again")


def test_the_lease_ends_where_the_event_loop_stands_still_for_too_long(table: RateTable) -> None:
    keeper = LeaseKeeper(table, 0.2, silent_s=0.1)
    keeper.start()
    eventually(lambda: ends(table) < now(), "it has ended")
    assert keeper.beat()
    assert ends(table) > now()
    assert not keeper.beat()
    keeper.stop()
    keeper.beat()


def test_a_lease_that_had_ended_is_told_once(table: RateTable, keeper: LeaseKeeper) -> None:
    assert keeper.beat()  # there was none before
    assert not keeper.beat()
    table.renew_lease(-1)
    assert keeper.beat()
    assert not keeper.beat()


def test_nothing_is_renewed_after_the_end(table: RateTable) -> None:
    keeper = LeaseKeeper(table, 0.02)
    keeper.start()
    keeper.stop()
    before = ends(table)
    time.sleep(0.2)
    assert ends(table) == before


def test_a_thread_that_has_died_is_not_taken_for_one_that_lives(
    table: RateTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LeaseKeeper, "_run", lambda self: None)
    keeper = LeaseKeeper(table, 0.02)
    keeper.start()
    keeper._thread.join()
    with pytest.raises(RuntimeError, match="the thread that renews the lease has ended"):
        keeper.beat()
