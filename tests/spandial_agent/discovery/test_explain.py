"""Why a process is a target, or is none."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

import pytest

from spandial_agent.discovery import discovery as discovery_module
from spandial_agent.discovery.discovery import Discovery
from spandial_agent.discovery.rules import parse_rules
from spandial_agent.processes import proc as processes
from spandial_agent.processes.proc import read_process
from spandial_agent.processes.sockets import listening_ports
from spandial_agent.table.memfd import MemfdTable
from spandial_agent.table.rates import RateTable
from spandial_agent.targets.targets import Targets
from tests.agent_process import AgentProcess, eventually
from tests.spandial_agent.command import run_all
from tests.spandial_agent.conftest import DEFAULT
from tests.spandial_agent.running_discovery import (
    LISTENER,
    Start,
    discovering,
    go_on,
    runs,
    within,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


async def test_a_target_explains_which_rules_matched_and_which_did_not(
    targets: Targets, scanning: None, start: Start, copy_of_sleep: str, free_port: int
) -> None:
    rules = f"exclude exe=sleep; include port={free_port}; include exe=edge-proxy environ=KEY=hunter2 service=edge"
    async with discovering(targets, rules) as discovery:
        child = start(copy_of_sleep, "60", KEY="hunter2", OTEL_SERVICE_NAME="checkout")
        await runs(child.pid, "edge-proxy")
        explanation = await discovery.explain(child.pid)
    included = "include exe=edge-proxy environ=KEY=hunter2 service=edge"
    assert (explanation.name, explanation.target, explanation.why) == ("edge-proxy", True, f"rule: {included}")
    assert [(found.rule, found.matched, found.why) for found in explanation.rules] == [
        ("exclude exe=sleep", False, f"executable is {copy_of_sleep}"),
        (f"include port={free_port}", False, "listens on no TCP port"),
        (included, True, f"executable is {copy_of_sleep}; variable KEY matches"),
        ("environment names a service", True, "environment names checkout"),
    ]


async def test_a_process_that_is_none_explains_that_nobody_names_it(
    targets: Targets, scanning: None, start: Start
) -> None:
    async with discovering(targets, "exclude cmdline=*61") as discovery:
        child, excluded = start("sleep", "60"), start("sleep", "61", OTEL_SERVICE_NAME="checkout")
        await runs(child.pid, "sleep")
        await runs(excluded.pid, "sleep")
        explanation = await discovery.explain(child.pid)
        assert not explanation.target
        assert explanation.why == "environment names no service, and no rule includes it"
        assert [(found.matched, found.why) for found in explanation.rules] == [
            (False, "command line is another"),
            (False, "environment names none"),
        ]
        explanation = await discovery.explain(excluded.pid)
        assert (explanation.target, explanation.why) == (False, "rule: exclude cmdline=*61")


async def test_an_explanation_looks_at_the_ports_of_this_moment(
    targets: Targets, scanning: None, start: Start, free_port: int
) -> None:
    async with discovering(targets, f"include port={free_port}") as discovery:
        child = start(sys.executable, "-S", "-c", LISTENER.format(port=free_port))
        go_on(child)
        await within(lambda: listening_ports(child.pid), "it listens")
        explanation = await discovery.explain(child.pid)
        assert (explanation.target, explanation.why) == (True, f"rule: include port={free_port}")
        assert explanation.rules[0].why == f"listens on {free_port}"


CONNECTED = """
import socket, sys
listener = socket.create_server(("127.0.0.1", 0))
ports = [int(sys.argv[1]), listener.getsockname()[1]]
kept = [socket.create_connection(("127.0.0.1", port)) for port in ports for _ in range(2)]
kept += [listener.accept()[0] for _ in range(2)]
print(ports[1], flush=True)
input()
"""


@pytest.fixture
def connecting() -> Iterator[tuple[int, int, int]]:
    """A process with two connections to a port, and two to its own: its id and both ports."""
    with socket.create_server(("127.0.0.1", 0)) as database:
        port = database.getsockname()[1]
        command = [sys.executable, "-S", "-c", CONNECTED, str(port)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            yield child.pid, port, int(child.stdout.readline())
            child.communicate("\n")


async def test_an_explanation_tells_ports_and_connections_of_whatever_process(
    targets: Targets, scanning: None, connecting: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pid, database, own = connecting
    async with discovering(targets) as discovery:
        explanation = await discovery.explain(pid)
        assert not explanation.target
        assert explanation.listens == [own]
        groups = {(found.incoming, found.address, found.port, found.count) for found in explanation.connections}
        here = "127.0.0.1"
        assert groups == {(False, here, database, 2), (False, here, own, 2), (True, here, own, 2)}
        monkeypatch.setattr(discovery_module, "_SHOWN_MAX", 1)
        assert len((await discovery.explain(pid)).connections) == 1


async def test_what_is_no_living_process_explains_that(targets: Targets, scanning: None, start: Start) -> None:
    ended = start("true")
    # Popen waits for a child only when it is asked.
    await within(lambda: read_process(ended.pid) is None, "it has ended")
    async with discovering(targets, "include exe=*") as discovery:
        assert (await discovery.explain(1 << 30)).why == "no such process"
        assert (await discovery.explain(ended.pid)).why == "has ended, and nobody has waited for it"


async def test_a_thread_explains_whose_it_is(targets: Targets, scanning: None) -> None:
    thread = threading.Thread(target=(done := threading.Event()).wait)
    thread.start()
    async with discovering(targets, "include exe=*") as discovery:
        assert thread.native_id is not None
        explanation = await discovery.explain(thread.native_id)
    done.set()
    thread.join()
    assert (explanation.target, explanation.why) == (False, f"is a thread of process {os.getpid()}")


async def test_a_kernel_thread_is_never_a_target(targets: Targets, scanning: None) -> None:
    threads = [pid for pid in processes.all_pids() if (p := read_process(pid)) and p.kernel_thread]
    if not threads:
        pytest.skip("no kernel thread is visible in this pid namespace")
    async with discovering(targets, "include cmdline=*") as discovery:
        explanation = await discovery.explain(threads[0])
        assert (explanation.target, explanation.why) == (False, "is a kernel thread")
        assert all(targets.get(pid) is None for pid in threads)


def _explain_as_nobody(pid: int, said: Connection) -> None:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    table = RateTable(MemfdTable())
    discovery = Discovery(Targets(table, DEFAULT), parse_rules("include exe=sleep environ=A=*"))
    said.send(asyncio.run(discovery.explain(pid)))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_process_that_may_not_be_read_explains_that(start: Start) -> None:
    child = start("sleep", "60", OTEL_SERVICE_NAME="checkout")
    fork = multiprocessing.get_context("fork")
    told, said = fork.Pipe(duplex=False)
    reader = fork.Process(target=_explain_as_nobody, args=(child.pid, said))
    reader.start()
    explanation = told.recv()
    reader.join()
    assert (explanation.target, explanation.why) == (False, "environment unreadable, and no rule includes it")
    assert [found.why for found in explanation.rules] == [
        "executable unreadable; environment unreadable",
        "environment unreadable",
    ]


def test_the_command_line_says_why(make_agent: Callable[..., AgentProcess], start: Start, copy_of_sleep: str) -> None:
    agent = make_agent(SPANDIAL_TABLE="memfd", SPANDIAL_DISCOVER="include exe=edge-proxy env=gray; exclude exe=sleep")
    child, excluded = start(copy_of_sleep, "60"), start("sleep", "60", OTEL_SERVICE_NAME="checkout")
    target = eventually(lambda: agent.target(child.pid), "the process is a target")
    assert (target["service"], target["env"]) == ("edge-proxy", "gray")
    assert target["why"] == "rule: include exe=edge-proxy env=gray"
    settings = {"SPANDIAL_RUN_DIR": str(agent.run_dir)}
    commands = [["targets", "--explain", str(pid)] for pid in (child.pid, excluded.pid, agent.pid)]
    (included, _), (nobody, _), (itself, _), (listed, _) = run_all(settings, [*commands, ["targets"]])
    first, *rules = included.splitlines()
    assert first == f"{child.pid} edge-proxy is a target: rule: include exe=edge-proxy env=gray"
    assert rules[1].split()[:4] == ["include", "exe=edge-proxy", "env=gray", "yes"]
    assert rules[2].split()[:3] == ["exclude", "exe=sleep", "no"]
    assert nobody.startswith(f"{excluded.pid} sleep is no target: rule: exclude exe=sleep\n")
    assert " is no target: is the agent itself\n" in itself
    assert "rule: include exe=edge-proxy env=gray" in listed


def test_a_rule_that_is_none_keeps_the_agent_from_starting() -> None:
    settings = {"SPANDIAL_DISCOVER": "include exec=nginx\n"}
    [(_, err)] = run_all(settings, [["agent"]], code=1)
    assert len(err.splitlines()) == 1
    assert "SPANDIAL_DISCOVER=include exec=nginx" in err
    assert "no such condition: 'exec=nginx'" in err
    assert "there are exe=" in err
