"""`spandial off` takes everything of the agent out of the kernel, and ends every boost; `on` brings it back."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.agent_process import AgentProcess, eventually
from tests.e2e.services import uvicorn
from tests.e2e.test_agent_death import hook_keeps, kernel_counts
from tests.spandial_agent.command import run

pytestmark = [pytest.mark.kernel, pytest.mark.e2e]


def links(pid: int) -> int:
    """How many programs of a process are attached to something: links, and perf events with a program."""
    found = 0
    for descriptor in Path(f"/proc/{pid}/fdinfo").iterdir():
        try:
            found += bool(re.search(r"^link_type:", descriptor.read_text(), re.MULTILINE))
        except OSError:  # closed meanwhile
            continue
    return found


def test_off_and_on_again(make_agent: Callable[..., AgentProcess], tmp_path: Path) -> None:
    agent = make_agent()
    with uvicorn(agent, tmp_path, env="gray") as server:
        agent.set(0)
        agent.set(100, env="gray", mode="boost")
        assert hook_keeps(server, tmp_path)
        assert links(agent.pid) >= 1
        seen = kernel_counts(agent, server)["seen"]
        assert seen > 0

        out, _ = run(agent.settings, "off", "--why", "a test")
        assert out.startswith("off, until 'spandial on'")
        assert links(agent.pid) == 0
        eventually(lambda: not hook_keeps(server, tmp_path), "the hook uses its fallback")
        assert kernel_counts(agent, server)["seen"] == seen
        health = agent.get("/healthz")
        assert (health["status"], health["capture"]) == ("degraded", "off")
        assert "a test" in health["missing"][0]

        # It stays off over a restart.
        agent.kill()
        agent.start()
        agent.hooked("shop")
        assert links(agent.pid) == 0
        assert not hook_keeps(server, tmp_path)

        run(agent.settings, "on")
        eventually(lambda: hook_keeps(server, tmp_path), "the hook obeys again")
        assert links(agent.pid) >= 1
        assert kernel_counts(agent, server)["seen"] > 0
        assert agent.get("/healthz")["status"] == "ok"

        # What passed meanwhile is no difference between the kernel and the hook.
        agent.hooked("shop")

        def differs() -> bool:
            http = next(t for t in agent.get("/stats")["targets"] if t["pid"] == server.pid)["kinds"]["http"]
            return bool(http["difference_seen"])

        hook_keeps(server, tmp_path)
        eventually(lambda: not differs(), "kernel and hook are at one")

        shown, _ = run(agent.settings, "log")
        assert re.search(r" off +node .*a test", shown)


def test_capture_that_costs_more_than_it_may_is_off_and_rates_hold(
    make_agent: Callable[..., AgentProcess], tmp_path: Path
) -> None:
    agent = make_agent(SPANDIAL_CAPTURE_CPU_LIMIT="1e-7")
    with uvicorn(agent, tmp_path, env="gray") as server:
        agent.set(0)
        agent.set(100, env="gray", mode="boost")

        def is_off() -> bool:
            hook_keeps(server, tmp_path)  # which makes the programs run
            return bool(agent.get("/healthz")["capture"] == "off")

        eventually(is_off, "capture is off")
        [reason] = agent.get("/healthz")["missing"]
        assert "SPANDIAL_CAPTURE_CPU_LIMIT (1e-07)" in reason
        assert links(agent.pid) == 0
        assert hook_keeps(server, tmp_path)

        run(agent.settings, "on")  # who wants it on has it on, until it costs too much again
        agent.hooked("shop")
        assert links(agent.pid) >= 1
        assert agent.get("/healthz")["missing"] == []
