"""A server's runs in turns: without an agent, under a whole one, without.

Some ten seconds lie between a run and its baseline, in which an agent starts or stops: these ratios are as wide as the
host is noisy. They show what the slices of bench/pairs.py leave out: the agent's own work, and readers of its entries.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import mean

from tests.agent_process import AgentProcess, eventually

from bench import report
from bench.programs import capture_programs, wait_until_gone
from bench.servers import Load, Server, cpu_ns
from bench.watcher import Watcher

__all__ = ["BYSTANDER", "NO_AGENT", "Cycles"]

NO_AGENT, BYSTANDER = "no agent", "bystander"
_WATCHED = "rate 100 %, watched"
_RATES = {"rate 0 %": 0, "rate 1 %": 1, "rate 100 %": 100, _WATCHED: 100}


class Cycles:
    """The runs of one server under one capture path.

    Args:
        kind: of server.
        path: SPANDIAL_CAPTURE.
        cores: the first loads, the last serves.
        folder: for everything's files.
        stack: takes the servers down.

    Attributes:
        requests: of each run.
        loads: the runs by arm. Those without an agent are one more than the others, which lie between them.
        bystander_alone: the bystander's runs without an agent.
        sent, counted: requests sent to the target under agents, and entries that the kernel counted.
        disturbed: runs without an agent in which there was somebody else's.
    """

    def __init__(self, kind: str, path: str, cores: list[int], folder: Path, stack: ExitStack) -> None:
        self.requests = 2000
        self.loads: dict[str, list[Load]] = {arm: [] for arm in (NO_AGENT, *_RATES, BYSTANDER)}
        self.bystander_alone: list[Load] = []
        self.sent = self.counted = self.disturbed = 0
        self._path, self._folder = path, folder
        self._service = f"bench-{kind}"
        places = cores[-1], cores[0]
        self._target = stack.enter_context(closing(Server(kind, folder / "target", self._service, *places)))
        self._bystander = stack.enter_context(closing(Server(kind, folder / "bystander", None, *places)))

    def run(self, cycles: int, seconds: float) -> None:
        """Run, and find out before how many requests take so long."""
        for server in (self._bystander, self._target):
            warm = server.load(self.requests)
        self.requests = max(1000, int(warm.rate * seconds))
        self._alone()
        for _ in range(cycles):
            with self._agent() as agent:
                self._under(agent)
            self._alone()

    def ratio(self, arm: str, performance: Callable[[Load], float]) -> report.Spread:
        """Each run by the mean of the two without an agent around it; those without, each by the one before."""
        base = list(map(performance, self.bystander_alone if arm == BYSTANDER else self.loads[NO_AGENT]))
        if arm == NO_AGENT:
            return report.ratios(base[1:], base)
        return report.ratios(list(map(performance, self.loads[arm])), list(map(mean, pairwise(base))))

    def _alone(self) -> None:
        self.disturbed += bool(capture_programs())
        self.loads[NO_AGENT].append(self._target.load(self.requests))
        self.bystander_alone.append(self._bystander.load(self.requests))

    @contextmanager
    def _agent(self) -> Iterator[AgentProcess]:
        """A running agent that has discovered the target."""
        agent = AgentProcess(self._folder / "agent", SPANDIAL_CAPTURE=self._path, SPANDIAL_REQUIRE_KERNEL="1")
        programs: set[int] = set()
        try:
            agent.start()
            programs = capture_programs(agent.pid)
            # It loads programs for the server's TLS library a while later, which takes a second of processor time.
            eventually(lambda: self._tls_seen(agent), "the server is discovered and looked at")
            yield agent
        finally:
            agent.stop()
            agent.http.close()
            wait_until_gone(programs)

    def _tls_seen(self, agent: AgentProcess) -> bool:
        target = agent.target(self._target.pid)
        return target is not None and target["tls"] != "not looked at yet"

    def _under(self, agent: AgentProcess) -> None:
        arms = [*_RATES, BYSTANDER]
        for arm in random.sample(arms, len(arms)):
            self.loads[arm].append(self._load(agent, arm))
        stats = next(target for target in agent.get("/stats")["targets"] if target["pid"] == self._target.pid)
        self.counted += stats["kinds"]["http"]["kernel"]["seen"]

    def _load(self, agent: AgentProcess, arm: str) -> Load:
        if arm == BYSTANDER:
            return self._bystander.load(self.requests)
        agent.set(_RATES[arm], service=self._service, mode="strict")
        self.sent += self.requests
        if arm != _WATCHED:
            return self._target.load(self.requests)
        with closing(Watcher(agent.run_dir)):
            time.sleep(0.3)
            load = self._target.load(self.requests)
            _settle(agent.pid)
        time.sleep(0.3)
        return load


def _settle(pid: int) -> None:
    """Wait until the agent has handed on all entries, or for ten seconds."""
    for _ in range(100):
        before = cpu_ns(pid)
        time.sleep(0.1)
        if cpu_ns(pid) - before < 5_000_000:
            return
