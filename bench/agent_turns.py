"""Agents of two trees: their start and end, their rest with many hooked targets, and their work under load.

In each turn there are two fresh agents of each tree. They start and end one after the other, rest at the same time, so
that what happens on the host meets all alike, and work one at a time: each has a server of its own for a target.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

from tests.agent_process import AgentProcess, eventually

from bench.comparison import NEW, OLD, Order, Side, four
from bench.crowd import Crowd
from bench.servers import Server, cpu_ns, megabytes
from bench.setting import Setting
from bench.watcher import Watcher
from bench.workloads import lacking
from spandial_agent.kernel.probe import missing_for_kernel

__all__ = ["PART", "compare_agents"]

PART = "agent"
_SERVICE = "bench-compare"
_TARGETS = 100  # hooked, of each agent
_PACE, _SECONDS = 4000, 1.0  # requests a second, all kept and watched
_REST_S, _LOOK_S = 2.0, 3.0
_SETTLED_S = 0.1
_TURNS = 12
_Place = tuple[Side, int]


class _Turn:
    """Two agents of each tree.

    Args:
        servers: one for each agent, or none: then nothing is said of load.
    """

    def __init__(self, setting: Setting, servers: dict[_Place, Server], stack: ExitStack) -> None:
        self._setting, self._servers, self._stack = setting, servers, stack
        self._agents: dict[_Place, AgentProcess] = {}

    def run(self, order: Order) -> None:
        self._add("ms", order, self._start)
        at_rest = self._rest()
        self._add("% of a core", order, lambda *place: {f"at rest, {_TARGETS} targets": at_rest[place][0]})
        self._add("MB", order, lambda *place: {f"RSS, {_TARGETS} targets": at_rest[place][1]})
        if self._servers:
            for place, server in self._servers.items():
                self._discover(self._agents[place], server)
            self._add("us", order, self._work)
        self._add("ms", order, self._stop)

    def _add(self, unit: str, order: Order, measure: Callable[[Side, int], dict[str, float]]) -> None:
        found = {name: [quad] for name, quad in four(order, measure).items()}
        self._setting.comparison.add(PART, unit, found)

    def _start(self, side: Side, index: int) -> dict[str, float]:
        folder = _folder(self._setting, side, index)
        self._stack.callback(shutil.rmtree, folder, ignore_errors=True)
        rule = f"include cmdline=*{_server_folder(self._setting, side, index)}/* service={_SERVICE}"
        agent = self._setting.trees[side].agent(folder, SPANDIAL_DISCOVER=rule)
        self._stack.callback(agent.http.close)
        began = time.monotonic_ns()
        try:
            agent.start()
        finally:
            if agent.process is not None:
                self._stack.callback(agent.stop)
        self._agents[side, index] = agent
        return {"start, until it serves": (time.monotonic_ns() - began) / 1e6}

    def _stop(self, side: Side, index: int) -> dict[str, float]:
        began = time.monotonic_ns()
        self._agents[side, index].stop()
        return {"SIGTERM until its end": (time.monotonic_ns() - began) / 1e6}

    def _rest(self) -> dict[_Place, tuple[float, float]]:
        """Of each agent percent of a core, and megabytes."""
        with ExitStack() as stack:
            for (side, _), agent in self._agents.items():
                crowd = stack.enter_context(closing(Crowd(self._setting.trees[side], agent.run_dir, _TARGETS)))
                crowd.pids()
                # One after the other: what all of them ask for at once comes late on a busy host, and is asked again.
                eventually(partial(crowd.hooked, agent), f"{_TARGETS} hooked targets")
            time.sleep(_REST_S)
            before = {place: cpu_ns(agent.pid) for place, agent in self._agents.items()}
            began = time.monotonic_ns()
            time.sleep(_LOOK_S)
            took = time.monotonic_ns() - began
            spent = {place: cpu_ns(agent.pid) - before[place] for place, agent in self._agents.items()}
            memory = {place: megabytes(agent.pid, "status", "VmRSS") for place, agent in self._agents.items()}
        return {place: (100 * spent[place] / took, memory[place]) for place in self._agents}

    def _discover(self, agent: AgentProcess, server: Server) -> None:
        agent.set(100, service=_SERVICE, mode="strict")

        def looked_at() -> bool:
            target = agent.target(server.pid)
            return target is not None and target.get("tls") != "not looked at yet"

        eventually(looked_at, "nginx is discovered and looked at")

    def _work(self, side: Side, index: int) -> dict[str, float]:
        agent, requests = self._agents[side, index], int(_PACE * _SECONDS)
        with closing(Watcher(agent.run_dir, _SERVICE)) as watcher:
            time.sleep(0.2)
            before = cpu_ns(agent.pid)
            self._servers[side, index].load(requests, _PACE)
            _settle(watcher, requests)
            spent = cpu_ns(agent.pid) - before
        if watcher.entries != requests:
            self._setting.comparison.note(
                f"Not every entry came to who watched the {side} agent: for example {watcher.entries} of {requests}."
            )
        return {"processor time for an entry that is watched": spent / requests / 1e3}


def _settle(watcher: Watcher, entries: int) -> None:
    """Wait until so many entries have come, or until no more come."""
    came = -1
    while came != watcher.entries and watcher.entries < entries:
        came = watcher.entries
        time.sleep(_SETTLED_S)


def _folder(setting: Setting, side: Side, index: int) -> Path:
    return setting.folder / f"{PART}-{side}-{index}"


def _server_folder(setting: Setting, side: Side, index: int) -> Path:
    return setting.folder / f"nginx-{side}-{index}"


def _warm(setting: Setting) -> None:
    """Each tree compiles its programs and modules before anything is timed."""
    with ExitStack() as stack:
        agents = {}
        for side, tree in setting.trees.items():
            agents[side] = agent = tree.agent(setting.folder / f"{PART}-warm-{side}")
            stack.callback(agent.http.close)
            agent.start()
            stack.callback(agent.stop)
        setting.look_at(agents)


def _started(setting: Setting, stack: ExitStack) -> dict[_Place, Server]:
    """A server for each agent; empty where there can be none."""
    if missing := missing_for_kernel() + lacking("nginx"):
        setting.comparison.missing.append(f"{PART} under load: {' '.join(missing)} deploy/setup may help.")
        return {}
    servers = {}
    for side in (OLD, NEW):
        for index in range(2):
            server = Server("nginx", _server_folder(setting, side, index), None, setting.cores[-1], setting.cores[-1])
            servers[side, index] = stack.enter_context(closing(server))
    return servers


def compare_agents(setting: Setting) -> None:
    setting.stay_off_the_last_core()
    with ExitStack() as stack:
        _warm(setting)
        servers = _started(setting, stack)
        for order in setting.rounds(PART, _TURNS):
            with ExitStack() as turn:
                _Turn(setting, servers, turn).run(order)
