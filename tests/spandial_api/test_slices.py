"""Long work leaves the event loop as much time as it takes, and is done by one after the other."""

from __future__ import annotations

import asyncio

import pytest

from spandial_api import slices as slices_module
from spandial_api.slices import SLICE_S, Slices

pytestmark = pytest.mark.anyio


class Clock:
    """Stands still but for work; notes what is slept."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.slept: list[float] = []
        sleep = asyncio.sleep

        async def slept(seconds: float) -> None:
            self.slept.append(seconds)
            self.now += seconds
            await sleep(0)

        monkeypatch.setattr(slices_module.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(slices_module.asyncio, "sleep", slept)


async def test_after_a_slice_the_loop_has_as_long_for_everything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    async with Slices().turn() as rest:
        clock.now += SLICE_S / 2
        await rest()
        assert clock.slept == [], "less than a slice"
        clock.now += SLICE_S
        await rest()
        assert clock.slept == [1.5 * SLICE_S]
        clock.now += 5 * SLICE_S
    assert clock.slept == [1.5 * SLICE_S, 5 * SLICE_S], "the last one, too, before the next one's turn"


async def test_long_work_is_done_by_one_after_the_other_and_short_work_waits_for_nobody() -> None:
    slices, done = Slices(), list[str]()
    begun, end = asyncio.Event(), asyncio.Event()

    async def long(name: str) -> None:
        async with slices.turn():
            begun.set()
            await end.wait()
            done.append(name)

    async def short() -> None:
        async with slices.turn(long=False):
            done.append("short")

    tasks = [asyncio.create_task(long(name)) for name in ("first", "second")]
    await begun.wait()
    await short()
    assert done == ["short"]
    end.set()
    await asyncio.gather(*tasks)
    assert done == ["short", "first", "second"]


async def test_who_goes_away_leaves_his_turn() -> None:
    slices = Slices()
    with pytest.raises(RuntimeError):
        async with slices.turn():
            raise RuntimeError
    async with slices.turn():
        pass
