"""Rates that follow a real load: through the kernel, and by the hook's own counts where there is no kernel."""

from __future__ import annotations

import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.agent_process import AgentProcess, eventually
from tests.e2e.services import Server, node, uvicorn

pytestmark = [pytest.mark.e2e, pytest.mark.needs("h2load")]

_CLIENTS = 4


@contextmanager
def load(server: Server, a_second: int, path: str = "/pay") -> Iterator[None]:
    """So many requests a second, while the block runs."""
    command = ["h2load", "--h1", "-D", "300", "-c", str(_CLIENTS), "--rps", str(a_second // _CLIENTS)]
    with subprocess.Popen([*command, server.url + path], stdout=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.kill()


class Counted:
    """What was counted of a process's HTTP entries."""

    def __init__(self, agent: AgentProcess, server: Server, who: str) -> None:
        self._agent, self._pid, self._who = agent, server.pid, who

    def totals(self) -> tuple[float, int, int]:
        """Time, entries, kept entries."""
        [stats] = [target for target in self._agent.get("/stats")["targets"] if target["pid"] == self._pid]
        counts = stats["kinds"].get("http", {}).get(self._who) or {}
        if self._who == "kernel":
            return time.monotonic(), counts.get("seen", 0), counts.get("kept", 0)
        kept = counts.get("root_kept", 0)
        return time.monotonic(), kept + counts.get("root_dropped", 0), kept

    def over(self, seconds: float) -> tuple[float, float]:
        """Entries and kept entries a second, in a time from now on."""
        began, seen_before, kept_before = self.totals()
        time.sleep(seconds)  # what is measured is a rate
        ended, seen, kept = self.totals()
        return (seen - seen_before) / (ended - began), (kept - kept_before) / (ended - began)


def meets(counted: Counted, target: float, what: str) -> None:
    """Four seconds of 100 entries a second are 400, give or take 20: a fifth is four times that."""
    measured = []

    def met() -> Any:
        seen, kept = counted.over(4)
        measured.append(f"{kept:.0f} of {seen:.0f}")
        return seen > 0 and abs(kept - min(target, seen)) < 0.2 * target

    try:
        eventually(met, f"{what}: {target} kept entries a second")
    except AssertionError as error:
        raise AssertionError(f"{error}; measured: {', '.join(measured)}") from None


def target_is_met(agent: AgentProcess, server: Server, who: str) -> None:
    counted = Counted(agent, server, who)
    answer = agent.http.put("/sampling", params={"target": "100", "service": "shop"})
    assert answer.is_success, answer.text
    with load(server, 200):
        meets(counted, 100, "a small load")
        with load(server, 1000):
            meets(counted, 100, "a greater load")
        meets(counted, 100, "the small load again")
    state = agent.target(server.pid)
    assert state is not None
    assert state["rates"]["http"]["target"] == 100


@pytest.mark.kernel
def test_a_target_is_met_through_the_kernel(make_agent: Callable[..., AgentProcess], tmp_path: Path) -> None:
    agent = make_agent()
    with node(tmp_path, service="shop") as server:
        eventually(lambda: agent.target(server.pid), "Node is found")
        target_is_met(agent, server, "kernel")


@pytest.mark.kernel
def test_what_a_rule_by_operation_drops_is_made_up_for(make_agent: Callable[..., AgentProcess], tmp_path: Path) -> None:
    agent = make_agent()
    with node(tmp_path, service="shop") as server:
        eventually(lambda: agent.target(server.pid), "Node is found")
        agent.set(0, operation="GET /health*")
        assert agent.http.put("/sampling", params={"target": "100", "service": "shop"}).is_success
        with load(server, 400), load(server, 600, "/health"):
            meets(Counted(agent, server, "kernel"), 100, "half of the load is never kept")


@pytest.mark.kernel
def test_a_target_is_met_by_a_hooked_process_that_the_kernel_counts(
    make_agent: Callable[..., AgentProcess], tmp_path: Path
) -> None:
    agent = make_agent()
    with uvicorn(agent, tmp_path) as server:
        target_is_met(agent, server, "kernel")


def test_a_target_is_met_by_the_hooks_own_counts(memfd_agent: AgentProcess, tmp_path: Path) -> None:
    with uvicorn(memfd_agent, tmp_path) as server:
        target_is_met(memfd_agent, server, "hook")


@pytest.mark.kernel
def test_a_budget_is_shared_by_processes_with_and_without_a_hook(
    make_agent: Callable[..., AgentProcess], tmp_path: Path
) -> None:
    agent = make_agent(SPANDIAL_BUDGET="100")
    with uvicorn(agent, tmp_path) as hooked, node(tmp_path) as other:
        eventually(lambda: agent.target(other.pid), "Node is found")
        agent.set(50)

        def limited() -> list[str]:
            return [t["rates"]["http"]["limited"] for t in agent.get("/targets") if t["pid"] in (hooked.pid, other.pid)]

        with load(hooked, 400), load(other, 800):
            meets(Counted(agent, hooked, "kernel"), 50, "the hooked process's half")
            meets(Counted(agent, other, "kernel"), 50, "Node's half")
            assert limited() == ["budget", "budget"]
            assert agent.get("/budget")["limited"] == 2
            assert "spandial_limited_targets 2.0" in agent.http.get("/metrics").text
        eventually(lambda: limited() == ["", ""], "the rates come back")


@pytest.mark.kernel
def test_a_tenants_circuit_opens_and_survives_a_restart(
    make_agent: Callable[..., AgentProcess], tmp_path: Path
) -> None:
    agent = make_agent(SPANDIAL_BREAKER_OVER_SECONDS="1", SPANDIAL_BREAKER_UNDER_SECONDS="2")

    def stored() -> str:
        with closing(sqlite3.connect(agent.state_dir / "rules.sqlite")) as database:
            return str(database.execute("SELECT body FROM documents WHERE name = 'circuits'").fetchone())

    def circuit() -> str:
        [quota] = agent.get("/quotas")["quotas"]
        return str(quota["circuit"])

    with node(tmp_path, tenant="acme") as server:
        eventually(lambda: agent.target(server.pid), "Node is found")
        agent.set(100)
        assert agent.http.put("/quotas", params={"tenant": "acme", "entries": "20"}).is_success
        with load(server, 200):
            eventually(lambda: circuit() == "open", "the circuit opens")
            state = agent.target(server.pid)
            assert state is not None
            assert (state["rates"]["http"]["rate"], state["rates"]["http"]["limited"]) == (1, "tenant quota")
            assert 'spandial_tenant_circuit{state="open",tenant="acme"} 1.0' in agent.http.get("/metrics").text
            eventually(lambda: '"open"' in stored(), "it is on disk")
            agent.kill()
            agent.start()
            assert circuit() == "open"
        eventually(lambda: circuit() == "closed", "the circuit closes")
        eventually(lambda: (agent.target(server.pid) or {})["rates"]["http"]["rate"] == 100, "the rate comes back")
