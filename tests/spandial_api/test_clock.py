"""Nobody who sets the wall clock ends a rule early, or makes it last."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spandial_api import control as control_module
from spandial_api.clock import RunClock
from spandial_api.control import Author, Control
from spandial_api.rules import Rule
from spandial_api.selectors import Selector
from spandial_api.store import Store
from tests.spandial_api.fake_node import FakeNode

GRAY = Selector(env="gray")


class Clocks:
    """The two clocks as a test sets them."""

    def __init__(self) -> None:
        self.boot_s, self.offset = 100.0, 1_000_000.0

    def boot(self) -> float:
        return self.boot_s

    def wall(self) -> float:
        return self.boot_s + self.offset

    def run_clock(self) -> RunClock:
        return RunClock(self.wall, self.boot)


@given(st.lists(st.tuples(st.floats(0, 1e5), st.floats(-1e5, 1e5))))
def test_it_goes_as_the_boot_clock_does_whatever_the_wall_clock_is_set_to(turns: list[tuple[float, float]]) -> None:
    clocks = Clocks()
    clock = clocks.run_clock()
    began = clock.now()
    for passed, step in turns:
        clocks.boot_s += passed
        clocks.offset += step
    assert clock.now() - began == pytest.approx(clocks.boot_s - 100, abs=1e-3)
    clock.set(clock.step())
    assert abs(clock.now() - clocks.wall()) <= 1.001
    assert clock.step() == 0


def test_clocks_that_are_read_far_apart_are_not_compared() -> None:
    clocks = Clocks()
    clock = clocks.run_clock()
    clocks.offset += 3600

    def late() -> float:  # the process was stopped meanwhile
        clocks.boot_s += 10
        return clocks.boot_s

    assert RunClock(clocks.wall, late).step() == 0
    assert clock.step() == 3600


async def until(holds: Callable[[], bool]) -> None:
    for _ in range(1000):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
@pytest.mark.parametrize("step", [-3600.0, 3600.0])
async def test_a_rule_ends_when_its_time_is_over_and_not_when_the_clock_is_set(
    tmp_path: Path, node: FakeNode, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    monkeypatch.setattr(control_module, "_CLOCK_S", 0.01)
    clocks = Clocks()
    store = Store(tmp_path / "rules.sqlite")
    control = Control(store, node, clock=clocks.run_clock())
    running = asyncio.create_task(control.run())
    author = Author("uid 0")
    await control.put(Rule(GRAY, 100, expires=control.now() + 600), author)
    await control.put(Rule(Selector(), 1), author)
    clocks.boot_s += 100
    clocks.offset += step
    await until(lambda: store.load().rules[GRAY].expires == clocks.wall() + 500)  # what is stored is the wall clock's
    assert control.book == node.applied[-1] == store.load()
    assert "the clock was set" in store.audit(1)[0].why
    # An agent that is started now ends it then, too.
    assert Control(store, FakeNode(), clock=clocks.run_clock()).book.rules[GRAY].expires == clocks.wall() + 500
    clocks.boot_s += 499
    await asyncio.sleep(0.05)
    assert GRAY in control.book.rules
    clocks.boot_s += 1
    await until(lambda: set(node.applied[-1].rules) == set(store.load().rules) == {Selector()})
    running.cancel()
    store.close()


@pytest.mark.anyio
async def test_without_rules_that_end_a_clock_that_is_set_makes_no_revision(store: Store, node: FakeNode) -> None:
    clocks = Clocks()
    control = Control(store, node, clock=clocks.run_clock())
    await control.put(Rule(Selector(), 1), Author("uid 0"))
    clocks.offset += 3600
    await control._expire()
    assert control.now() == clocks.wall()
    assert control.book.revision == 1
