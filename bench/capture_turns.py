"""Capture by two trees: the programs of the one or the other attached to the same servers and clients."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import NamedTuple

from bench.comparison import Order, Quad, Side, four, orders
from bench.programs import run_times_kept
from bench.servers import Load
from bench.setting import Setting
from bench.switch import Dial, Seen, Switch
from bench.workloads import Workload, lacking, workload
from spandial_agent.kernel.probe import missing_for_kernel

__all__ = ["PART", "compare_capture"]

PART = "capture"
_KINDS = ("uvicorn", "nginx", "grpcio", "redis-benchmark", "pgbench -M simple")
_DIAL, _EXPORTED = Dial(1), Dial(100, exported=True)
# Of a slice: redis-benchmark's own clock has milliseconds, and gRPC's connections live long.
_SECONDS = {"grpcio": 0.25, "redis-benchmark": 0.2}
_SHORT = 0.1
_MULTIPLE = 16  # of which operations are: some generators divide them among their connections
_TURNS, _QUADS, _TIMED = 16, 2, 1


class _Running(NamedTuple):
    """A workload, and how many of its operations are a slice."""

    name: str
    workload: Workload
    operations: int


class _Turn:
    """The slices of a turn: each tree's programs, loaded for it."""

    def __init__(self, setting: Setting, switches: dict[Side, Switch]) -> None:
        self._setting, self._switches = setting, switches

    def run(self, running: _Running) -> None:
        quads = [four(order, lambda side, _: self._costs(running, side)) for order in self._orders(_QUADS)]
        with run_times_kept():
            timed = [four(order, lambda side, _: self._times(running, side)) for order in self._orders(_TIMED)]
        comparison = self._setting.comparison
        comparison.add(PART, "us", _by_name(quads))
        comparison.add(PART, "ns", _by_name(timed))

    def _orders(self, usual: int) -> list[Order]:
        return orders(1 if self._setting.quick else usual)

    def _costs(self, running: _Running, side: Side) -> dict[str, float]:
        load, _ = self._slice(running, side, _DIAL)
        return {
            f"{running.name}: an operation": 1e6 / load.rate,
            f"{running.name}: its processor time": load.cpu_ns / 1e3,
        }

    def _times(self, running: _Running, side: Side) -> dict[str, float]:
        made = {}
        for name, dial in (("", _DIAL), (", exported", _EXPORTED)):
            _, seen = self._slice(running, side, dial)
            made[f"{running.name}: in the programs{name}"] = seen.ns / running.operations
        return made

    def _slice(self, running: _Running, side: Side, dial: Dial) -> tuple[Load, Seen]:
        target, switch = running.workload, self._switches[side]
        switch.on(target.begin(running.operations), dial)
        load = target.finish()
        seen = switch.off()
        sent, counted = running.operations + target.beside, seen.requests[target.kind]
        if counted != sent:
            self._setting.comparison.note(
                f"The {side} does not count exactly, {running.name}: for example {counted} operations of {sent}."
            )
        return load, seen


def _by_name(quads: Iterable[dict[str, Quad]]) -> dict[str, list[Quad]]:
    made: dict[str, list[Quad]] = {}
    for each in quads:
        for name, quad in each.items():
            made.setdefault(name, []).append(quad)
    return made


def compare_capture(setting: Setting) -> None:
    missing = missing_for_kernel()
    if shutil.which("taskset") is None:
        missing.append("taskset is not installed.")
    if missing:
        setting.comparison.missing.append(f"{PART}: {' '.join(missing)} deploy/setup may help.")
        return
    setting.stay_off_the_last_core()
    with ExitStack() as stack:
        running = list(_started(setting, stack))
        for _ in setting.rounds(PART, _TURNS) if running else ():
            with ExitStack() as loaded:
                turn = _Turn(setting, _switches(setting, loaded))
                for each in running:
                    turn.run(each)


def _started(setting: Setting, stack: ExitStack) -> Iterable[_Running]:
    for kind in _KINDS:
        if missing := lacking(kind):
            setting.comparison.missing.append(f"{PART} of {kind}: {' '.join(missing)} deploy/setup may help.")
            continue
        target = workload(kind, setting.folder / f"{PART}-{kind.replace(' ', '')}", setting.cores, stack)
        yield _Running(kind, target, _operations(target, _SECONDS.get(kind, _SHORT)))


def _operations(target: Workload, seconds: float) -> int:
    """How many take so long."""
    operations = 64 * _MULTIPLE
    for _ in range(3):
        target.begin(operations)
        operations = max(1, int(target.finish().rate * seconds) // _MULTIPLE) * _MULTIPLE
    return operations


def _switches(setting: Setting, stack: ExitStack) -> dict[Side, Switch]:
    """Programs compiled and loaded anew, of both trees at the same time; the stack ends them."""
    core = setting.cores[:-1] or setting.cores
    with ThreadPoolExecutor(len(setting.trees)) as pool:
        begun = {
            side: pool.submit(Switch, setting.path, core[-1], tree, compiling_on=setting.cores)
            for side, tree in setting.trees.items()
        }
    for future in begun.values():
        if future.exception() is None:
            stack.callback(future.result().close)
    return {side: future.result() for side, future in begun.items()}
