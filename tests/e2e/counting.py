"""What the kernel counted of the entries of a service that the tests started, as the agent tells it."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

from spandial_agent.processes.proc import ancestors
from tests.agent_process import AgentProcess, eventually
from tests.e2e.programs.process import Done

__all__ = ["PARENT", "counted", "found", "no_losses", "operations", "own"]

# A header that says that its trace is kept.
PARENT = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def own(agent: AgentProcess, service: str, path: str = "/stats") -> list[dict[str, Any]]:
    """The service's targets, as /stats or /targets has them, but for those of whoever else tests on this node."""
    answer = agent.get(path)
    targets = answer["targets"] if path == "/stats" else answer
    return [t for t in targets if t["service"] == service and os.getpid() in ancestors(t["pid"])]


def found(agent: AgentProcess, service: str, processes: int = 1) -> None:
    """Wait until the agent has found so many processes of the service."""
    eventually(lambda: len(own(agent, service, "/targets")) >= processes, f"{service} is found")


def counted(agent: AgentProcess, service: str, kind: str) -> Counter[str]:
    """What the kernel counted of the service's entries of one kind, all its processes together."""
    total: Counter[str] = Counter()
    for target in own(agent, service):
        if kind in target["kinds"]:
            total.update(target["kinds"][kind]["kernel"])
    return total


def operations(done: Done) -> int:
    """Those that count: MySQL's preparations and pings are none."""
    return sum(count for kind, count in done.operations.items() if kind not in ("prepare", "close stmt", "ping"))


def no_losses(agent: AgentProcess) -> bool:
    losses: dict[str, int] = agent.get("/stats")["losses"]
    return not any(losses[reason] for reason in ("unreadable", "desync", "no_memory", "recursion"))
