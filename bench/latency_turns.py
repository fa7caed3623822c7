"""A turn of the dial in two trees: from a PUT to an agent until a hook of the same tree obeys."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial

from tests.agent_process import AgentProcess, eventually

from bench import report
from bench.comparison import NEW, OLD, Order, Side, four
from bench.setting import Setting
from bench.spinner import SERVICE, Change, Spinner, look_up, put

__all__ = ["PART", "compare_latency"]

PART = "latency"
_PUTS, _WARM = 100, 40  # of a block, and before the first one; even numbers
_PAUSE_S = 0.002  # between them, as in bench/latency
_TURNS = 12


class _Turn:
    """A fresh agent of each tree, and two spinners with each, of which one decides at a time."""

    def __init__(self, setting: Setting, stack: ExitStack) -> None:
        self._agents: dict[Side, AgentProcess] = {}
        self._spinners: dict[Side, list[Spinner]] = {OLD: [], NEW: []}
        for side, tree in setting.trees.items():
            agent = stack.enter_context(_running(setting, side))
            agent.set(0, service=SERVICE)
            self._agents[side] = agent
            for _ in range(2):
                spinner = Spinner(agent.run_dir, setting.cores[-1], tree=tree)
                self._spinners[side].append(stack.enter_context(closing(spinner)))

    def run(self, order: Order, setting: Setting) -> None:
        for side, spinners in self._spinners.items():
            for spinner in spinners:
                eventually(partial(self._row, side, spinner), "a spinner is hooked")
        setting.look_at(self._agents)
        for agent in self._agents.values():
            _turn_the_dial(agent, _WARM)
        for name, quad in four(order, self._block).items():
            setting.comparison.add(PART, "us", {name: [quad]})

    def _row(self, side: Side, spinner: Spinner) -> int | None:
        target = self._agents[side].target(spinner.pid)
        return int(target["row"]) if target is not None and target["kind"] == "hooked" else None

    def _block(self, side: Side, index: int) -> dict[str, float]:
        spinner = self._spinners[side][index]
        row = self._row(side, spinner)
        assert row is not None
        spinner.start(row)
        changes = _turn_the_dial(self._agents[side], _PUTS)
        waits = look_up(changes, spinner.stop()[0]).waits
        if not waits:
            raise RuntimeError(f"no decision of the {side} tree's hook obeyed any of {_PUTS} PUTs")
        answers = [change.answered - change.began for change in changes]
        measured = (("its answer", answers), ("the first decision that obeys", waits))
        return {f"PUT -> {to}, p{p}": report.percentile(ns, p) / 1e3 for to, ns in measured for p in (50, 99)}


def _turn_the_dial(agent: AgentProcess, times: int) -> list[Change]:
    """To 100 % and back to 0."""
    changes = []
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(agent.run_dir / "api.sock"))
        for number in range(times):
            changes.append(put(connection, 0 if number % 2 else 100))
            time.sleep(_PAUSE_S)
    return changes


@contextmanager
def _running(setting: Setting, side: Side) -> Iterator[AgentProcess]:
    """An agent of this turn, without anything of another turn's."""
    folder = setting.folder / f"{PART}-{side}"
    agent = setting.trees[side].agent(folder)
    with closing(agent.http):
        try:
            agent.start()
            yield agent
        finally:
            agent.stop()
            shutil.rmtree(folder)


def compare_latency(setting: Setting) -> None:
    setting.stay_off_the_last_core()
    for order in setting.rounds(PART, _TURNS):
        with ExitStack() as stack:
            _Turn(setting, stack).run(order, setting)
