"""The kernel's count of entries is the number of requests sent, on both capture paths; the hook's is too. Exactly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.agent_process import AgentProcess, eventually
from tests.e2e.counting import PARENT, found, own
from tests.e2e.services import Server, gunicorn, h2load, nginx, node, uvicorn

pytestmark = [pytest.mark.kernel, pytest.mark.e2e, pytest.mark.needs("h2load")]


def counts(agent: AgentProcess, service: str) -> dict[str, int]:
    """What kernel and hooks counted of the service's HTTP entries, all its processes together."""
    total = dict.fromkeys(("seen", "kept", "seen_traced", "kept_traced", "hook", "hook_remote_kept", "difference"), 0)
    for target in own(agent, service):
        if "http" in target["kinds"]:
            http: dict[str, Any] = target["kinds"]["http"]
            for name in ("seen", "kept", "seen_traced", "kept_traced"):
                total[name] += http["kernel"][name]
            if http["hook"]:
                hook = http["hook"]
                total["hook"] += sum(count for name, count in hook.items() if not name.startswith("local"))
                total["hook_remote_kept"] += hook["remote_kept"]
                total["difference"] += abs(http["difference_seen"]) + abs(http["difference_kept"])
    return total


def test_uvicorn_a_hundred_thousand(both_agents: list[AgentProcess], tmp_path: Path) -> None:
    with uvicorn(both_agents[0], tmp_path) as server:
        check_hooked(both_agents, server, 100_000)


@pytest.mark.parametrize("unix", [False, True], ids=["IPv6", "Unix socket"])
def test_uvicorn_over_ipv6_and_a_unix_socket(both_agents: list[AgentProcess], unix: bool, tmp_path: Path) -> None:
    agents = both_agents[::-1]  # it obeys the agent on sys_exit
    with uvicorn(agents[0], tmp_path, unix=unix, host="127.0.0.1" if unix else "::1") as server:
        check_hooked(agents, server, 10_000)


def test_gunicorn_with_four_workers_a_hundred_thousand(both_agents: list[AgentProcess], tmp_path: Path) -> None:
    with gunicorn(both_agents[0], tmp_path) as server:
        check_hooked(both_agents, server, 100_000, processes=5)
        busy = [target for target in own(both_agents[0], "shop") if target["kinds"].get("http")]
    assert len(busy) > 1


@pytest.mark.needs("node")
def test_node_a_hundred_thousand(both_agents: list[AgentProcess], tmp_path: Path) -> None:
    check_unhooked(both_agents, lambda: node(tmp_path), "front", 100_000)


@pytest.mark.needs("nginx")
def test_nginx_over_ipv6(both_agents: list[AgentProcess], tmp_path: Path) -> None:
    def url(server: Server) -> str:
        return server.url.replace("127.0.0.1", "[::1]")

    check_unhooked(both_agents, lambda: nginx(both_agents, tmp_path), "edge", 100_000, url)


@pytest.mark.needs("nginx")
def test_nginx_over_a_unix_socket(both_agents: list[AgentProcess], tmp_path: Path) -> None:
    check_unhooked(both_agents, lambda: nginx(both_agents, tmp_path, unix=True), "edge", 100_000)


@pytest.mark.needs("node")
def test_node_over_ipv6_and_a_unix_socket(both_agents: list[AgentProcess], tmp_path: Path) -> None:
    check_unhooked(both_agents, lambda: node(tmp_path), "front", 20_000, lambda s: s.url.replace("127.0.0.1", "[::1]"))
    check_unhooked(both_agents, lambda: node(tmp_path, unix=True), "front", 20_000)


def check_hooked(agents: list[AgentProcess], server: Server, requests: int, processes: int = 1) -> None:
    """The shop obeys the first of the agents; the other one only captures it."""
    obeyed, other = agents
    found(other, "shop", processes)
    h2load(server, requests, PARENT, staggered=processes > 1)
    shop, captured = counts(obeyed, "shop"), counts(other, "shop")
    for kernel in (shop, captured):
        assert kernel["seen"] == kernel["seen_traced"] == kernel["kept_traced"] == requests
    # A hook is asked, and waited for no longer than 50 ms: on a busy host it tells later.
    shop = eventually(lambda: told if (told := counts(obeyed, "shop"))["hook"] >= requests else None, "hooks tell")
    assert shop["hook"] == shop["hook_remote_kept"] == requests
    assert shop["difference"] == captured["hook"] == 0
    for agent in agents:
        assert agent.get("/stats")["losses"]["unreadable"] == 0


def check_unhooked(
    agents: list[AgentProcess],
    start: Callable[[], Any],
    service: str,
    requests: int,
    url: Callable[[Server], str] = lambda server: "",
) -> None:
    """At 30 %, strict, every request of one trace is decided alike: all are kept, or none."""
    for agent in agents:
        agent.set(30, service=service, mode="strict")
    kept = int("48eb211c80319c", 16) >= (1 << 56) * 7 // 10
    with start() as server:
        for agent in agents:
            found(agent, service)
        h2load(server, requests, PARENT, url=url(server))
        for agent in agents:
            http = counts(agent, service)
            assert http["seen"] == http["seen_traced"] == requests
            assert http["kept"] == http["kept_traced"] == (requests if kept else 0)
        h2load(server, 1000)
        for agent in agents:
            http = counts(agent, service)
            assert http["seen"] == requests + 1000
            assert http["seen_traced"] == requests
            # Without a trace context the kernel draws: 300 of 1,000, give or take six standard deviations.
            assert abs(http["kept"] - http["kept_traced"] - 300) < 90
