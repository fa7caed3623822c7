"""Processes that rules include and exclude by the ports that they listen on."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path

import pytest

from spandial.labels import Labels
from spandial_agent.discovery import discovery as discovery_module
from spandial_agent.targets.targets import Targets
from tests.spandial_agent.running_discovery import (
    LISTENER,
    Start,
    becomes_target,
    by_events,
    discovering,
    go_on,
    parent_of,
    runs,
    within,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture
def quick_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery_module, "_PORTS_S", 0.05)


# The child of the process that is started.
FORKED_LISTENER = "import os; child = os.fork(); child and os.waitpid(child, 0); " + LISTENER


def take_pid_next(pid: int) -> None:
    Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))


async def test_a_process_is_included_once_it_listens(
    targets: Targets,
    monkeypatch: pytest.MonkeyPatch,
    start: Start,
    free_port: int,
    quick_ports: None,
) -> None:
    async with by_events(targets, monkeypatch, f"include port={free_port} service=late"):
        child = start(sys.executable, "-S", "-c", LISTENER.format(port=free_port))
        await asyncio.sleep(0.3)
        assert targets.get(child.pid) is None
        go_on(child)
        target = await becomes_target(targets, child.pid)
        assert (target.labels, target.why) == (Labels("late"), f"rule: include port={free_port} service=late")
        assert targets.get(os.getpid()) is None


async def test_a_web_server_is_included_by_its_port(
    targets: Targets, scanning: None, start: Start, free_port: int, quick_ports: None
) -> None:
    async with discovering(targets, f"include port={free_port}-{free_port} exe=python*"):
        child = start(sys.executable, "-m", "http.server", str(free_port), "--bind", "127.0.0.1")
        target = await becomes_target(targets, child.pid)
        assert target.labels.service == os.path.basename(os.readlink(f"/proc/{child.pid}/exe"))


async def test_a_process_is_excluded_once_it_listens_and_stays_so(
    targets: Targets,
    scanning: None,
    start: Start,
    free_port: int,
    quick_ports: None,
) -> None:
    async with discovering(targets, f"exclude port={free_port}") as discovery:
        child = start(sys.executable, "-S", "-c", LISTENER.format(port=free_port), OTEL_SERVICE_NAME="checkout")
        await becomes_target(targets, child.pid)
        go_on(child)
        await within(lambda: targets.get(child.pid) is None, "the excluded process is no target")
        discovery.scan()
        assert targets.get(child.pid) is None


async def test_a_forked_child_may_be_the_one_to_listen(
    targets: Targets,
    monkeypatch: pytest.MonkeyPatch,
    start: Start,
    free_port: int,
    quick_ports: None,
) -> None:
    async with by_events(targets, monkeypatch, f"include port={free_port} service=late"):
        parent = start(sys.executable, "-S", "-c", FORKED_LISTENER.format(port=free_port))
        go_on(parent)
        child = await within(
            lambda: next((target for target in targets if parent_of(target.pid) == parent.pid), None),
            "the child is a target",
        )
        assert child.labels == Labels("late")
        assert targets.get(parent.pid) is None


async def test_nobody_waits_for_ports_unless_a_rule_names_one(
    targets: Targets, scanning: None, monkeypatch: pytest.MonkeyPatch, quick_ports: None
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("ports were looked at")

    monkeypatch.setattr(discovery_module, "began_to_listen", fail)
    monkeypatch.setattr(discovery_module, "listening_ports", fail)
    async with discovering(targets, "include exe=none") as discovery:
        discovery.scan()
        await asyncio.sleep(0.2)


@pytest.mark.kernel
@pytest.mark.needs("unshare")
async def test_a_process_in_another_network_namespace_is_included_by_its_port(
    targets: Targets,
    monkeypatch: pytest.MonkeyPatch,
    start: Start,
    free_port: int,
    quick_ports: None,
) -> None:
    async with by_events(targets, monkeypatch, f"include port={free_port} service=pod"):
        child = start("unshare", "--net", sys.executable, "-S", "-c", LISTENER.format(port=free_port))
        go_on(child)
        assert (await becomes_target(targets, child.pid)).labels == Labels("pod")


@pytest.mark.kernel
async def test_who_gets_the_pid_of_an_included_process_does_not_get_its_ports(
    targets: Targets,
    monkeypatch: pytest.MonkeyPatch,
    start: Start,
    free_port: int,
    quick_ports: None,
) -> None:
    async with by_events(targets, monkeypatch, f"include port={free_port} service=late") as discovery:
        child = start(sys.executable, "-S", "-c", LISTENER.format(port=free_port))
        go_on(child)
        await becomes_target(targets, child.pid)
        child.kill()
        child.wait()
        await within(lambda: targets.get(child.pid) is None, "the ended process is no target")
        for _ in range(200):  # others start processes too
            take_pid_next(child.pid)
            if start("sleep", "60").pid == child.pid:
                break
        await runs(child.pid, "sleep")
        discovery._look_at(child.pid)
        assert targets.get(child.pid) is None
        explanation = await discovery.explain(child.pid)
        assert explanation.rules[0].why == "listens on no TCP port"
