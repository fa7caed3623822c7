"""Discovery as the tests run it, and the processes that it finds."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pyroute2
import pytest

from spandial_agent.discovery import discovery as discovery_module
from spandial_agent.discovery.discovery import Discovery
from spandial_agent.discovery.rules import parse_rules
from spandial_agent.processes.proc import read_process
from spandial_agent.targets.target import Target
from spandial_agent.targets.targets import Targets
from tests.agent_process import eventually

__all__ = [
    "LISTENER",
    "Start",
    "becomes_target",
    "by_events",
    "discovering",
    "go_on",
    "parent_of",
    "runs",
    "scan_only",
    "starting",
    "within",
]

_NOBODY = 1 << 30  # no pid

Start = Callable[..., subprocess.Popen[bytes]]

# Waits for a line, listens on the port, and waits for another.
LISTENER = "import socket; input(); kept = socket.create_server(('', {port})); input()"


class _NoEvents:
    """A kernel that hands out no process events."""

    def __init__(self) -> None:
        raise PermissionError(1, "Operation not permitted")


@contextmanager
def starting() -> Iterator[Start]:
    """Start processes with an environment of their own; all are killed at the end."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*command: str, **environ: str) -> subprocess.Popen[bytes]:
        child = subprocess.Popen(command, env={"PATH": os.environ["PATH"], **environ}, stdin=subprocess.PIPE)
        started.append(child)
        return child

    yield start
    for child in started:
        child.kill()
        child.communicate()


def scan_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyroute2, "ProcEventSocket", _NoEvents)
    monkeypatch.setattr(discovery_module, "_SCAN_ONLY_S", 0.05)


@asynccontextmanager
async def discovering(targets: Targets, rules: str = "", agent_pid: int = _NOBODY) -> AsyncIterator[Discovery]:
    """Discovery by these rules; the processes that a test starts are not taken for the agent's own."""
    discovery = Discovery(targets, parse_rules(rules), agent_pid)
    discovery.start()
    try:
        yield discovery
    finally:
        discovery.close()


@asynccontextmanager
async def by_events(targets: Targets, monkeypatch: pytest.MonkeyPatch, rules: str = "") -> AsyncIterator[Discovery]:
    """Discovery that is told of everything and looks for nothing."""
    async with discovering(targets, rules) as discovery:
        if discovery.how != "events":
            (pytest.fail if os.environ.get("SPANDIAL_REQUIRE_KERNEL") == "1" else pytest.skip)(discovery.reason)

        async def scan() -> None: ...

        monkeypatch.setattr(discovery, "scan_in_slices", scan)
        yield discovery


async def within(condition: Callable[[], Any], what: str) -> Any:
    return await asyncio.to_thread(eventually, condition, what)


async def becomes_target(targets: Targets, pid: int) -> Target:
    target = await within(lambda: targets.get(pid), "the process is a target")
    assert isinstance(target, Target)
    return target


async def runs(pid: int, name: str) -> None:
    """Wait until an exec is over: it takes the new name first, and then an environment."""
    shown = Path(f"/proc/{pid}/environ")
    await within(lambda: (p := read_process(pid)) and p.name == name and shown.read_bytes(), f"{name} runs")


def go_on(child: subprocess.Popen[bytes]) -> None:
    """Give it the line that it waits for."""
    assert child.stdin is not None
    child.stdin.write(b"\n")
    child.stdin.flush()


def parent_of(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return int(stat.read().rpartition(")")[2].split()[1])
    except OSError:
        return 0
