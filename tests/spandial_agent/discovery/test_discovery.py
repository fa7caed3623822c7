"""Processes that come and go, found without their help."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pyroute2
import pytest

from spandial.labels import Labels
from spandial_agent.discovery import discovery as discovery_module
from spandial_agent.discovery.events import new_processes
from spandial_agent.processes import proc as processes
from spandial_agent.processes.counter_page import CounterPage
from spandial_agent.processes.proc import read_process
from spandial_agent.table.rates import RateTable
from spandial_agent.targets.target import Target
from spandial_agent.targets.targets import Targets
from tests.spandial_agent.conftest import DEFAULT
from tests.spandial_agent.running_discovery import (
    Start,
    becomes_target,
    by_events,
    discovering,
    parent_of,
    within,
)

pytestmark = pytest.mark.anyio


class LostEvents:
    """A kernel that has dropped events once, and has none since."""

    reads = 0

    def bind(self) -> None: ...

    def control(self, listen: bool) -> None: ...

    def get(self) -> list[dict[str, Any]]:
        self.reads += 1
        if self.reads > 1:
            threading.Event().wait(60)
        raise OSError(105, "No buffer space available")


def pidfds() -> list[str]:
    links = []
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            links.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return [link for link in links if "pidfd" in link]


async def test_a_process_that_runs_already_is_found_at_the_start(
    targets: Targets, scanning: None, start: Start
) -> None:
    child = start("sleep", "60", OTEL_SERVICE_NAME="checkout")
    await within(lambda: (process := read_process(child.pid)) and process.labels.service, "it runs")
    async with discovering(targets):
        target = targets.get(child.pid)
        assert target is not None
        assert target.labels == Labels("checkout")
        assert targets.get(os.getpid()) is None


async def test_events_tell_of_a_process_as_it_starts_and_as_it_ends(
    targets: Targets, monkeypatch: pytest.MonkeyPatch, start: Start
) -> None:
    async with by_events(targets, monkeypatch):
        attributes = "service.version=v1,deployment.environment.name=gray"
        child = start("sleep", "60", OTEL_SERVICE_NAME="checkout", OTEL_RESOURCE_ATTRIBUTES=attributes)
        nameless = start("sleep", "60")
        target = await becomes_target(targets, child.pid)
        assert (target.labels, target.process.name) == (Labels("checkout", "v1", "gray"), "sleep")
        assert targets.get(nameless.pid) is None
        child.kill()
        await within(lambda: targets.get(child.pid) is None, "the ended process is no target")


async def test_events_tell_of_a_fork_whose_parent_alone_has_labels(
    targets: Targets, monkeypatch: pytest.MonkeyPatch, start: Start
) -> None:
    script = "import os, sys; sys.stdin.readline(); os.fork(); sys.stdin.readline()"
    async with by_events(targets, monkeypatch):
        parent = start(sys.executable, "-S", "-c", script)
        assert parent.stdin is not None
        process = await within(lambda: read_process(parent.pid), "it runs")
        targets.hook(process, Labels("checkout", "v1", "gray"), DEFAULT, CounterPage())
        parent.stdin.write(b"fork\n")
        parent.stdin.flush()

        def child_of_parent() -> Target | None:
            return next((target for target in targets if parent_of(target.pid) == parent.pid), None)

        child = await within(child_of_parent, "the child is a target")
        assert child.labels == Labels("checkout", "v1", "gray")
        assert not child.hooked


async def test_events_tell_of_an_exec_with_other_labels(
    targets: Targets, monkeypatch: pytest.MonkeyPatch, start: Start
) -> None:
    async with by_events(targets, monkeypatch):
        command = "read line; OTEL_SERVICE_NAME=second exec sleep 60"
        child = start("sh", "-c", command, OTEL_SERVICE_NAME="first")
        target = await becomes_target(targets, child.pid)
        row = target.row
        assert target.labels == Labels("first")
        assert child.stdin is not None
        child.stdin.write(b"\n")
        child.stdin.flush()
        await within(lambda: target.labels == Labels("second"), "the target has its new labels")
        assert (targets.get(child.pid), target.row) == (target, row)


async def test_without_events_processes_are_found_by_scanning_and_it_is_said_why(
    targets: Targets, scanning: None, start: Start
) -> None:
    async with discovering(targets) as discovery:
        assert discovery.how == "scan"
        assert "hands out no process events (" in discovery.reason
        assert "Operation not permitted" in discovery.reason
        child = start("sleep", "60", OTEL_SERVICE_NAME="checkout")
        await becomes_target(targets, child.pid)
        child.kill()
        await within(lambda: targets.get(child.pid) is None, "the ended process is no target")


async def test_a_process_that_ends_while_it_is_found_is_no_target(
    targets: Targets, monkeypatch: pytest.MonkeyPatch, start: Start
) -> None:
    pidfd_open, ended = os.pidfd_open, []

    def open_too_late(pid: int) -> int:
        os.kill(pid, signal.SIGKILL)
        ended.append(os.waitpid(pid, 0)[0])
        return pidfd_open(pid)

    async with by_events(targets, monkeypatch):
        monkeypatch.setattr(os, "pidfd_open", open_too_late)
        child = start("sleep", "60", OTEL_SERVICE_NAME="checkout")
        await within(lambda: ended == [child.pid], "it is found and ends")
        await within(lambda: targets.get(child.pid) is None, "it is no target")


async def test_a_process_whose_end_cannot_be_watched_is_missed_by_the_next_scan(
    targets: Targets,
    scanning: None,
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(pid: int) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    async with discovering(targets):
        child = start("sleep", "60", OTEL_SERVICE_NAME="checkout")
        await becomes_target(targets, child.pid)
        child.kill()
        child.wait()
        await within(lambda: targets.get(child.pid) is None, "the ended process is no target")


async def test_events_that_were_lost_are_counted_and_made_good_by_a_scan(
    targets: Targets, monkeypatch: pytest.MonkeyPatch, start: Start
) -> None:
    monkeypatch.setattr(pyroute2, "ProcEventSocket", LostEvents)
    child = start("sleep", "60", OTEL_SERVICE_NAME="checkout")
    async with discovering(targets) as discovery:
        assert discovery.how == "events"
        await within(lambda: discovery.lost == 1, "the loss is counted")
        await becomes_target(targets, child.pid)


async def test_losses_in_a_row_are_made_good_by_one_scan(
    targets: Targets, monkeypatch: pytest.MonkeyPatch, start: Start
) -> None:
    monkeypatch.setattr(discovery_module, "_LOST_S", 0.05)
    async with discovering(targets) as discovery:
        scans: list[int] = []

        async def scan() -> None:
            scans.append(discovery.lost)

        monkeypatch.setattr(discovery, "scan_in_slices", scan)
        before = discovery.lost
        for _ in range(10):
            discovery._handle(None)
        assert (discovery.lost, scans) == (before + 10, [])
        await within(lambda: scans == [before + 10], "one scan makes them good")
        discovery._handle(None)
        await within(lambda: scans == [before + 10, before + 11], "a later loss has a scan of its own")


async def test_a_scan_that_fails_is_not_the_last(
    targets: Targets,
    scanning: None,
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failed = threading.Event()

    def fail_once() -> Iterator[int]:
        if not failed.is_set():
            failed.set()
            raise OSError(24, "Too many open files")
        return processes.all_pids()

    async with discovering(targets):
        monkeypatch.setattr(discovery_module, "all_pids", fail_once)
        await within(failed.is_set, "a scan has failed")
        child = start("sleep", "60", OTEL_SERVICE_NAME="checkout")
        await becomes_target(targets, child.pid)


async def test_a_process_that_cannot_be_looked_at_hides_no_other(
    targets: Targets, scanning: None, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd, child = (start("sleep", "60", OTEL_SERVICE_NAME=name) for name in ("odd", "checkout"))
    await within(lambda: all((p := read_process(c.pid)) and p.labels.service for c in (odd, child)), "they run")

    def read(pid: int, known: processes.Process | None = None) -> processes.Process | None:
        if pid == odd.pid:
            raise RuntimeError("odd\x1b[2J")
        return read_process(pid, known)

    monkeypatch.setattr(discovery_module, "read_process", read)
    async with discovering(targets) as discovery:
        assert targets.get(odd.pid) is None
        assert targets.get(child.pid) is not None
        assert [part.trouble for part in discovery.supervised] == ["", "", ""]


async def test_closing_frees_its_descriptors_and_leaves_every_row_as_it_is(
    targets: Targets, table: RateTable, scanning: None, start: Start
) -> None:
    child = start("sleep", "60", OTEL_SERVICE_NAME="checkout")
    async with discovering(targets):
        target = await becomes_target(targets, child.pid)
        words = table.backend.read(target.row.number)
        assert pidfds()
    assert pidfds() == []
    assert targets.get(child.pid) is target
    assert table.backend.read(target.row.number) == words


def test_new_processes_are_those_that_exec_or_fork_and_not_threads() -> None:
    exec_ = {"event": "PROC_EVENT_EXEC", "process_pid": 7, "process_tgid": 7}
    exec_of_a_thread = {"event": "PROC_EVENT_EXEC", "process_pid": 9, "process_tgid": 7}
    fork = {"event": "PROC_EVENT_FORK", "parent_pid": 7, "parent_tgid": 7, "child_pid": 8, "child_tgid": 8}
    thread = {"event": "PROC_EVENT_FORK", "parent_pid": 7, "parent_tgid": 7, "child_pid": 8, "child_tgid": 7}
    exit_ = {"event": "PROC_EVENT_EXIT", "process_pid": 7, "process_tgid": 7}
    found = [list(new_processes(message)) for message in (exec_, exec_of_a_thread, fork, thread, exit_)]
    assert found == [[(7, 0)], [(7, 0)], [(8, 7)], [], []]
