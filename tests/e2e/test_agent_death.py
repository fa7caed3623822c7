"""The agent dies under load and comes back: no request fails, and the rates do what the lease says."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.agent_process import AgentProcess, eventually
from tests.e2e.load import start_load
from tests.e2e.services import Server, gunicorn, node, uvicorn

pytestmark = [pytest.mark.kernel, pytest.mark.e2e]

# The trace's own randomness decides at 0 and 100 % only by the mode, so a request shows which word is obeyed.
DROPPED = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"}


def hook_keeps(server: Server, folder: Path) -> bool:
    """Whether the service keeps a request whose caller dropped it: only a boost does that."""
    path = folder / f"kept.{server.pid}"
    before = path.stat().st_size if path.exists() else 0
    server.get(headers=DROPPED)
    for _ in range(25):  # the span ends after its response
        if path.exists() and path.stat().st_size > before:
            return True
        time.sleep(0.02)
    return False


def kernel_counts(agent: AgentProcess, server: Server) -> dict[str, int]:
    """What the kernel counted of a server's HTTP entries."""
    [stats] = [target for target in agent.get("/stats")["targets"] if target["pid"] == server.pid]
    return dict(stats["kinds"]["http"]["kernel"])


def test_a_killed_agent_costs_no_request_and_its_boost_ends_with_the_lease(
    make_agent: Callable[..., AgentProcess], tmp_path: Path
) -> None:
    agent = make_agent(SPANDIAL_LEASE_SECONDS="2")
    with uvicorn(agent, tmp_path, env="gray") as server:
        agent.set(1)
        agent.set(100, env="gray", mode="boost")
        assert hook_keeps(server, tmp_path)

        load = start_load(server.url, 20_000, 5)
        time.sleep(0.5)
        agent.kill()
        killed = time.monotonic()
        kept_after_death = hook_keeps(server, tmp_path)
        if time.monotonic() - killed < 1:  # the lease had at least so long to go
            assert kept_after_death
        # The load's own requests are kept where their callers say so: the end shows once it is over.
        eventually(lambda: not hook_keeps(server, tmp_path), "the boost ends")

        agent.start()
        eventually(lambda: hook_keeps(server, tmp_path), "the hook obeys again")
        rules = {rule["selector"]: rule["rate"] for rule in agent.get("/sampling")["rules"]}
        assert rules == {"env=gray": 100, "default": 1}
        assert agent.hooked("shop")[0]["pid"] == server.pid
        agent.set(0, env="gray", mode="boost")
        assert not hook_keeps(server, tmp_path)
        assert len(load.finish()) == 20_000
        assert server.process.poll() is None


def test_a_stopped_agents_boost_ends_with_the_lease_in_hook_and_kernel_and_returns_with_the_agent(
    make_agent: Callable[..., AgentProcess], tmp_path: Path
) -> None:
    """Nobody can ask a stopped agent: what the kernel did meanwhile is read when it goes on. That the lease has run out
    is seen by the hook, which looks less often than the kernel."""
    agent = make_agent(SPANDIAL_LEASE_SECONDS="2")
    with uvicorn(agent, tmp_path) as hooked, node(tmp_path) as other:
        eventually(lambda: agent.target(other.pid), "Node is found")
        agent.set(0)
        agent.set(100, env="stable", mode="boost")

        def sent_to_node() -> dict[str, int]:
            for headers in [DROPPED, None] * 20:
                other.get(headers=headers)
            return kernel_counts(agent, other)

        assert hook_keeps(hooked, tmp_path)
        before = sent_to_node()
        assert before["kept"] == before["seen"] == 40

        agent.signal(signal.SIGSTOP)
        try:
            eventually(lambda: not hook_keeps(hooked, tmp_path), "the hook's boost ends")
            for headers in [DROPPED, None] * 20:
                other.get(headers=headers)
        finally:
            agent.signal(signal.SIGCONT)
        after = kernel_counts(agent, other)
        assert after["seen"] == 80
        assert after["kept"] == 40, "the fallback, the default of 0 %, holds for what no caller kept"

        eventually(lambda: hook_keeps(hooked, tmp_path), "the hook obeys again")
        again = sent_to_node()
        assert (again["seen"], again["kept"]) == (120, 80)
        assert hooked.process.poll() is other.process.poll() is None


def test_a_killed_agent_leaves_no_boost_in_the_kernel_and_the_next_one_obeys_the_rules_again(
    make_agent: Callable[..., AgentProcess], tmp_path: Path
) -> None:
    """The programs are the agent's: they end with it. The rules are on disk, and those that ended meanwhile are not
    obeyed again."""
    agent = make_agent(SPANDIAL_LEASE_SECONDS="2")
    with node(tmp_path) as other:
        eventually(lambda: agent.target(other.pid), "Node is found")
        agent.set(0)
        agent.set(100, env="stable", mode="boost", ttl="2s")
        other.get(headers=DROPPED)
        assert kernel_counts(agent, other)["kept"] == 1
        agent.kill()
        for _ in range(20):
            assert other.get(headers=DROPPED).is_success
        agent.start()
        eventually(
            lambda: [rule["selector"] for rule in agent.get("/sampling")["rules"]] == ["default"], "it has ended"
        )
        eventually(lambda: agent.target(other.pid), "Node is found again")
        for _ in range(20):
            other.get(headers=DROPPED)
        counts = kernel_counts(agent, other)
        assert (counts["seen"], counts["kept"]) == (20, 0)
        agent.set(100, env="stable", mode="boost")
        other.get(headers=DROPPED)
        assert kernel_counts(agent, other)["kept"] == 1


def test_the_kernel_counts_again_after_a_restart(make_agent: Callable[..., AgentProcess], tmp_path: Path) -> None:
    agent = make_agent(SPANDIAL_LEASE_SECONDS="2")
    with uvicorn(agent, tmp_path) as server:
        agent.kill()
        agent.start()
        agent.hooked("shop")
        for _ in range(50):
            server.get(headers=DROPPED)

        def http() -> dict[str, Any]:
            target = next(t for t in agent.get("/stats")["targets"] if t["pid"] == server.pid)
            found: dict[str, Any] = target["kinds"]["http"]
            return found

        assert http()["kernel"]["seen"] == 50
        counts = eventually(lambda: None if (now := http())["difference_seen"] else now, "the hook tells")
        assert counts["difference_kept"] == 0


def test_prefork_workers_come_back_to_a_restarted_agent(
    make_agent: Callable[..., AgentProcess], tmp_path: Path
) -> None:
    agent = make_agent(SPANDIAL_LEASE_SECONDS="2")
    with gunicorn(agent, tmp_path, workers=2) as server:
        before = {target["pid"] for target in agent.hooked("shop", 3)}
        agent.kill()
        agent.start()
        assert {target["pid"] for target in agent.hooked("shop", 3)} == before
        assert server.get().status_code == 200
