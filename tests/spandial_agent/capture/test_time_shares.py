"""The time of the thread that looks, shared by users."""

from __future__ import annotations

import pytest

from spandial_agent.capture.time_shares import TimeShares


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_who_used_his_time_waits_until_it_is_made_good() -> None:
    clock = Clock()
    times = TimeShares(2.0, 0.1, clock)
    times.used(1, 1.5)
    assert not times.wait_s(1)
    times.used(1, 1.5)
    assert times.wait_s(1) == pytest.approx(10.0)
    assert not times.wait_s(2)
    clock.now = 10.1
    assert not times.wait_s(1)


def test_root_has_no_limit() -> None:
    times = TimeShares(2.0, 0.1, Clock())
    times.used(0, 100.0)
    assert not times.wait_s(0)
