"""Discovery among processes whose environments are bombs."""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from spandial.labels import Labels
from spandial_agent.discovery import discovery as discovery_module
from spandial_agent.processes import proc as processes
from spandial_agent.processes.proc import Process, read_process, read_traits, same_process
from spandial_agent.targets.targets import Targets
from tests.agent_process import eventually
from tests.spandial_agent.running_discovery import Start, becomes_target, discovering, within

pytestmark = pytest.mark.anyio

BOUND = 128 << 10

# Runs with an environment of 2 MB of tiny variables; the name comes first or last.
_BOMB = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_STACK, (resource.RLIM_INFINITY,) * 2)
first, last = sys.argv[1:3]
bomb = {f"OTEL_{number:x}": "" for number in range(200_000)}
os.execve("/bin/sleep", ["sleep", "600"], {"A" + first: "", **({"OTEL_SERVICE_NAME": first} if first else {}), **bomb,
    **({"OTEL_SERVICE_NAME": last} if last else {})})
"""


@pytest.fixture
def bomb() -> Iterator[object]:
    started: list[subprocess.Popen[bytes]] = []

    def start(first: str = "", last: str = "") -> int:
        if resource.getrlimit(resource.RLIMIT_STACK)[1] != resource.RLIM_INFINITY:
            pytest.skip("the stack is limited, and so is the environment")
        child = subprocess.Popen([sys.executable, "-S", "-c", _BOMB, first, last])
        started.append(child)
        eventually(lambda: Path(f"/proc/{child.pid}/comm").read_text() == "sleep\n", "it runs")
        eventually(lambda: len(Path(f"/proc/{child.pid}/environ").read_bytes()) > BOUND, "it has its environment")
        return child.pid

    yield start
    for child in started:
        child.kill()
        child.wait()


def found(pid: int, known: Process | None = None) -> Process:
    process = read_process(pid, known)
    assert process is not None
    return process


def test_of_a_long_environment_the_beginning_is_read(bomb: object) -> None:
    assert callable(bomb)
    process = found(bomb(first="checkout"))
    assert (process.labels, process.cut) == (Labels("checkout"), True)
    assert found(bomb(last="checkout")).labels == Labels()


def test_of_a_long_environment_no_more_is_parsed_than_is_wanted(bomb: object) -> None:
    assert callable(bomb)
    pid = bomb(first="checkout")
    environ = read_traits(pid, {"environ"}, variables={"OTEL_SERVICE_NAME", "OTEL_5", "NONE"}).environ
    assert environ == {"OTEL_SERVICE_NAME": "checkout", "OTEL_5": ""}
    whole = read_traits(pid, {"environ"}).environ
    assert whole is not None
    assert sum(map(len, whole)) <= BOUND


@pytest.mark.parametrize("value", [b"a=b," * 100_000, b"," * 100_000, b"%41" * 30_000])
def test_attributes_without_end_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: bytes) -> None:
    taken: list[int] = []
    monkeypatch.setattr(processes, "labels_from_environ", lambda environ: taken.append(len(str(environ))) or Labels())
    folder = tmp_path / "7"
    folder.mkdir()
    (folder / "environ").write_bytes(b"OTEL_RESOURCE_ATTRIBUTES=" + value[:100_000] + b"\0")
    (folder / "stat").write_bytes(b"7 (a) S " + b"1 " * 49)
    monkeypatch.setattr(processes, "_PROC", tmp_path)
    assert read_process(7) is not None
    assert taken[0] < 40_000


def test_the_environment_of_a_program_is_read_once(monkeypatch: pytest.MonkeyPatch, start: Start) -> None:
    child = start("sleep", "600", OTEL_SERVICE_NAME="checkout")
    eventually(lambda: found(child.pid).labels.service, "it runs")
    known = found(child.pid)
    monkeypatch.setattr(processes, "_read_environ", lambda folder: pytest.fail("it was read again"))
    assert found(child.pid, known) == known
    for other in (known._replace(start_time=1), known._replace(image=1), known._replace(image=0)):
        with pytest.raises(pytest.fail.Exception):
            read_process(child.pid, other)


def test_a_process_is_not_taken_for_another_of_its_pid() -> None:
    own = found(os.getpid())
    assert same_process(own)
    assert not same_process(own._replace(start_time=own.start_time - 1))
    assert not same_process(own._replace(pid=1 << 30))
    assert read_traits(os.getpid(), {"exe"}, own.start_time).exe
    assert not read_traits(os.getpid(), {"exe"}, own.start_time - 1).exe


async def test_a_scan_leaves_the_event_loop_time_for_everything_else(
    targets: Targets, scanning: None, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery_module, "_SCAN_ONLY_S", 3600.0)
    monkeypatch.setattr(discovery_module, "_SLICE_S", 0.0)
    async with discovering(targets) as discovery:
        child = start("sleep", "600", OTEL_SERVICE_NAME="checkout")
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        while targets.get(child.pid) is None:
            await discovery.scan_in_slices()
        counting.cancel()
        assert turns >= len(list(processes.all_pids())) // 2


async def test_events_are_looked_at_in_slices_and_none_is_forgotten(
    targets: Targets, scanning: None, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery_module, "_SCAN_ONLY_S", 3600.0)
    monkeypatch.setattr(discovery_module, "_SLICE_S", 0.0)
    async with discovering(targets) as discovery:
        children = [start("sleep", "600", OTEL_SERVICE_NAME="checkout") for _ in range(5)]
        await within(lambda: all(found(child.pid).labels.service for child in children), "they run")
        discovery._handle([(child.pid, 0) for child in children])
        assert sum(targets.get(child.pid) is not None for child in children) == 1
        for child in children:
            await becomes_target(targets, child.pid)


async def test_one_process_that_cannot_be_looked_at_keeps_nobody_waiting(
    targets: Targets, scanning: None, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery_module, "_SCAN_ONLY_S", 3600.0)
    async with discovering(targets) as discovery:
        look_at = discovery._look_at

        def fails_of_one(pid: int, parent: int = 0) -> None:
            if pid == 1 << 30:
                raise OSError(24, "Too many open files")
            look_at(pid, parent)

        monkeypatch.setattr(discovery, "_look_at", fails_of_one)
        child = start("sleep", "600", OTEL_SERVICE_NAME="checkout")
        await within(lambda: found(child.pid).labels.service, "it runs")
        discovery._handle([(1 << 30, 0), (child.pid, 0)])
        await becomes_target(targets, child.pid)


async def test_more_events_than_can_be_looked_at_are_a_loss_that_a_scan_makes_good(
    targets: Targets, scanning: None, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery_module, "_SCAN_ONLY_S", 3600.0)
    monkeypatch.setattr(discovery_module, "_COMING_MAX", 10)
    async with discovering(targets) as discovery:
        child = start("sleep", "600", OTEL_SERVICE_NAME="checkout")
        await within(lambda: found(child.pid).labels.service, "it runs")
        discovery._handle([(pid, 0) for pid in range(1 << 30, (1 << 30) + 20)])
        assert discovery.lost == 1
        await becomes_target(targets, child.pid)
