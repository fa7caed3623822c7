"""Capture that costs more than it may is detached for a while, is tried again, and nobody's wish is overridden."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spandial_agent.capture import cost
from spandial_agent.capture.cost import CostLimit, keep_within
from tests.agent_process import eventually


def pauses(limit: CostLimit, *samples: float) -> list[float | None]:
    return [limit.take(each) for each in samples]


def test_a_burst_is_no_reason() -> None:
    limit = CostLimit(0.5)
    assert pauses(limit, 9, 9, 0.5, 9, 9, 0.5) == [None] * 6
    assert pauses(limit, 0.6, 0.6, 0.6) == [None, None, 60.0]


def test_each_time_it_waits_longer_until_it_was_calm_for_long() -> None:
    limit = CostLimit(0.5)
    assert [pauses(limit, 1, 1, 1)[-1] for _ in range(4)] == [60.0, 300.0, 1800.0, 1800.0]
    pauses(limit, *[0.1] * 59)
    assert pauses(limit, 1, 1, 1)[-1] == 1800.0
    pauses(limit, *[0.1] * 60)
    assert pauses(limit, 1, 1, 1)[-1] == 60.0


@given(st.lists(st.floats(0, 2), max_size=200))
def test_it_is_never_off_but_for_three_samples_above(samples: list[float]) -> None:
    limit = CostLimit(1.0)
    found = pauses(limit, *samples)
    for at, pause in enumerate(found):
        if pause is not None:
            assert all(each > 1.0 for each in samples[at - 2 : at + 1])
            assert found[at - 2 : at] == [None, None]


class Capture:
    """Costs what it is told to."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.started.set()
        self.reasons: list[str] = []
        self.starts = self.refusals = 0
        self.spent_ns = 0
        self.begun = time.monotonic_ns()
        self.processors = 0.0

    @property
    def running(self) -> bool:
        return self.started.is_set()

    def programs(self) -> list[Any]:
        now = time.monotonic_ns()
        self.spent_ns += int((now - self.begun) * self.processors)
        self.begun = now
        return [SimpleNamespace(run_time_ns=self.spent_ns)]

    def stop(self, why: str) -> None:
        self.started.clear()
        self.reasons.append(why)

    def start(self) -> None:
        self.starts += 1
        if self.starts > self.refusals:
            self.started.set()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "_INTERVAL_S", 0.01)
    monkeypatch.setattr(cost, "_WINDOW_S", 0.01)
    monkeypatch.setattr(cost, "_PAUSES_S", (0.05,))


async def until(condition: Callable[[], object]) -> None:
    await asyncio.to_thread(eventually, condition, "capture is stopped or started")


@pytest.mark.kernel
@pytest.mark.anyio
async def test_it_is_off_while_it_costs_too_much_and_on_again_afterwards(quick: None) -> None:
    capture = Capture()
    task = asyncio.create_task(keep_within(CostLimit(0.5), capture, capture.stop, capture.start))  # type: ignore[arg-type]
    await asyncio.sleep(0.2)
    assert capture.reasons == []
    capture.processors = 3.0
    await until(lambda: capture.starts)
    assert "more than SPANDIAL_CAPTURE_CPU_LIMIT (0.5)" in capture.reasons[0]
    await until(lambda: len(capture.reasons) > 1)  # it costs as much as before
    capture.processors = 0.0
    await until(lambda: capture.running)
    task.cancel()


@pytest.mark.kernel
@pytest.mark.anyio
async def test_somebody_who_wants_it_on_has_it_on(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "_PAUSES_S", (3600.0,))
    capture = Capture()
    capture.processors = 3.0
    task = asyncio.create_task(keep_within(CostLimit(0.5), capture, capture.stop, capture.start))  # type: ignore[arg-type]
    await until(lambda: not capture.running)
    capture.start()
    await until(lambda: len(capture.reasons) == 2)  # and it is looked at again
    task.cancel()


@pytest.mark.kernel
@pytest.mark.anyio
async def test_what_cannot_be_attached_is_tried_again(quick: None) -> None:
    capture = Capture()
    capture.processors, capture.refusals = 3.0, 3
    task = asyncio.create_task(keep_within(CostLimit(0.5), capture, capture.stop, capture.start))  # type: ignore[arg-type]
    await until(lambda: capture.starts > 3)
    task.cancel()
