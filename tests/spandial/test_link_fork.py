"""Forked children: each is a target of its own, and its parent's link is none of its business."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spandial.abi import encode_word
from tests.agent_process import PATIENCE_S, AgentProcess, eventually
from tests.spandial.applications import Application, hook_counts
from tests.spandial.fake_agent import FakeAgent, answer, page, sheet, table

AT_ONCE = """
sampler = Sampler("30%")
os.fork()
serve(sampler)
"""
ONCE_LINKED = """
sampler = linked(Sampler("30%"))
report(sampler)
os.fork()
serve(sampler)
"""
MULTIPROCESSING = """
import multiprocessing
sampler = linked(Sampler("30%"))
child = multiprocessing.get_context("fork").Process(target=serve, args=(sampler,))
child.start()
serve(sampler)
child.join()
sys.exit(child.exitcode)
"""
A_SAMPLER_EACH = """
os.fork()
serve(Sampler("30%"))
"""
WAYS = {
    "at once": AT_ONCE,
    "once linked": ONCE_LINKED,
    "by multiprocessing": MULTIPROCESSING,
    "before any sampler": A_SAMPLER_EACH,
}


@pytest.mark.parametrize("way", WAYS)
def test_parent_and_child_are_two_targets_and_both_obey(way: str, steady_agent: AgentProcess, service: str) -> None:
    steady_agent.set(70, service=service)
    with Application(steady_agent.run_dir, WAYS[way], OTEL_SERVICE_NAME=service) as application:
        parent, child = application.pids(2)
        targets = steady_agent.hooked(service, 2)
        assert {target["pid"] for target in targets} == {parent, child}
        assert len({target["row"] for target in targets}) == 2
        assert application.obeys(70, parent)
        assert application.obeys(70, child)
        steady_agent.set(40, service=service)
        assert application.obeys(40, child)  # the child may have held a copy of its parent's rates until now
        steady_agent.set(50, service=service)
        assert (application.rate(parent), application.rate(child)) == (50, 50)
        assert (application.end(), application.errors) == (0, [])


def test_a_childs_first_decision_obeys_its_parents_last_rates(steady_agent: AgentProcess, service: str) -> None:
    steady_agent.set(70, service=service)
    with Application(steady_agent.run_dir, ONCE_LINKED, OTEL_SERVICE_NAME=service) as application:
        parent, child = application.pids(2)
        steady_agent.hooked(service, 2)
        application.report(child)
        assert application.rates(child) == [70]
        assert application.rates(parent) == [70]


def test_parent_and_child_count_for_themselves(steady_agent: AgentProcess, service: str) -> None:
    steady_agent.set(30, service=service)
    script = """
sampler = linked(Sampler())
decide(sampler, 1000)
child = os.fork()
decide(linked(sampler), 200 if child else 100)
say()
sys.stdin.read()
"""
    with Application(steady_agent.run_dir, script, OTEL_SERVICE_NAME=service) as application:
        parent, child = application.pids(2)
        for pid, kept in ((parent, 360), (child, 30)):
            wanted = {"root_kept": kept, "root_dropped": kept * 7 // 3}
            assert eventually(lambda: hook_counts(steady_agent, pid) == wanted, "exact counts")  # noqa: B023


def test_a_child_holds_nothing_of_its_parents_link(steady_agent: AgentProcess, service: str) -> None:
    steady_agent.set(70, service=service)
    with Application(steady_agent.run_dir, ONCE_LINKED, OTEL_SERVICE_NAME=service) as application:
        parent, child = application.pids(2)
        steady_agent.hooked(service, 2)
        assert application.obeys(70, child)
        for pid in (parent, child):
            maps = Path(f"/proc/{pid}/maps").read_text()
            assert [maps.count(f"memfd:spandial-{name}") for name in ("rates", "counts", "sheet")] == [1, 1, 1]
            opened = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
            assert sum("memfd:spandial" in link for link in opened) == 3
            assert sum("socket:" in link for link in opened) == 1


@pytest.mark.parametrize("ends", ["parent", "child"])
def test_the_end_of_one_leaves_the_other_linked(ends: str, steady_agent: AgentProcess, service: str) -> None:
    steady_agent.set(70, service=service)
    with Application(steady_agent.run_dir, ONCE_LINKED, OTEL_SERVICE_NAME=service) as application:
        parent, child = application.pids(2)
        steady_agent.hooked(service, 2)
        gone, left = (parent, child) if ends == "parent" else (child, parent)
        os.kill(gone, signal.SIGKILL)
        eventually(lambda: steady_agent.target(gone) is None, "the agent noticed")
        steady_agent.set(40, service=service)
        assert application.obeys(40, left)
        assert [target["pid"] for target in steady_agent.hooked(service)] == [left]


def test_children_of_children_are_targets_too(steady_agent: AgentProcess, service: str) -> None:
    steady_agent.set(70, service=service)
    script = "sampler = Sampler()\nfor _ in range(3): os.fork()\nserve(sampler)"
    with Application(steady_agent.run_dir, script, OTEL_SERVICE_NAME=service) as application:
        pids = application.pids(8)
        assert {target["pid"] for target in steady_agent.hooked(service, 8)} == set(pids)
        assert all(application.obeys(70, pid) for pid in pids)
        assert application.end() == 0


def test_a_child_forked_without_an_agent_finds_it_when_it_comes(
    tmp_path: Path, make_agent: Callable[..., AgentProcess]
) -> None:
    with Application(tmp_path / "agent0" / "run", AT_ONCE, OTEL_SERVICE_NAME="shop") as application:
        parent, child = application.pids(2)
        assert (application.rate(parent), application.rate(child)) == (30, 30)
        make_agent(SPANDIAL_TABLE="memfd").set(70, service="shop")
        assert application.obeys(70, parent)
        assert application.obeys(70, child)


ON_COMMAND = """
sampler = linked(Sampler())
say(rate=0)
sys.stdin.readline()
os.fork()
serve(sampler)
"""


def test_a_child_that_cannot_reach_the_agent_falls_back_when_its_parents_lease_ends(
    make_agent: Callable[..., AgentProcess],
) -> None:
    agent = make_agent(SPANDIAL_TABLE="memfd", SPANDIAL_LEASE_SECONDS="2")
    agent.set(70, service="shop")
    agent.set(20)
    with Application(agent.run_dir, ON_COMMAND, OTEL_SERVICE_NAME="shop") as application:
        application.wait(1)
        agent.kill()
        application.send("fork")
        parent, child = application.pids(2)
        assert application.obeys(20, child)
        assert application.obeys(20, parent)
        assert application.rates(child) == [70, 20]


def test_a_child_that_cannot_reach_the_agent_has_a_copy_of_the_rates_only(tmp_path: Path) -> None:
    def respond(connection: socket.socket, _hello: dict[str, Any]) -> None:
        descriptors = [table(encode_word(70)), page(), sheet()]
        socket.send_fds(connection, [answer()], descriptors)
        for descriptor in descriptors:
            os.close(descriptor)

    with Application(tmp_path, ON_COMMAND) as application:
        with FakeAgent(tmp_path, respond):
            application.wait(1)
        application.send("fork")
        _, child = application.pids(2)
        assert application.rate(child) == 70
        assert "memfd:fake-" not in Path(f"/proc/{child}/maps").read_text()
        assert not [e for e in Path(f"/proc/{child}/fd").iterdir() if "memfd:fake-" in os.readlink(e)]


def test_each_process_registers_under_its_own_pid_and_obeys_its_own_row(tmp_path: Path) -> None:
    words = [encode_word(70), encode_word(40)]

    def respond(connection: socket.socket, _hello: dict[str, Any]) -> None:
        descriptors = [table(words.pop(0)), page(), sheet()]
        socket.send_fds(connection, [answer()], descriptors)
        for descriptor in descriptors:
            os.close(descriptor)

    with FakeAgent(tmp_path, respond) as agent, Application(tmp_path, ONCE_LINKED) as application:
        parent, child = application.pids(2)
        assert application.obeys(40, child)
        assert application.rate(parent) == 70
        assert [hello["pid"] for hello in agent.hellos] == [parent, child]


def test_a_child_forked_while_its_parent_registers_does_not_hold_the_parents_connection(tmp_path: Path) -> None:
    registering = tmp_path / "registering"

    def say_nothing(_connection: socket.socket, _hello: dict[str, Any]) -> None:
        registering.touch()

    script = f"sampler = Sampler()\nwhile not os.path.exists({str(registering)!r}): pass\nos.fork()\nserve(sampler)"
    with FakeAgent(tmp_path, say_nothing) as agent, Application(tmp_path, script) as application:
        parent, child = application.pids(2)
        os.kill(parent, signal.SIGKILL)
        assert agent.hellos[0]["pid"] == parent
        agent.connections[0].settimeout(PATIENCE_S)
        assert agent.connections[0].recv(1) == b""
        application.report(child)


def test_a_program_that_a_fork_executes_is_left_alone(steady_agent: AgentProcess, service: str) -> None:
    script = """
import subprocess
sampler = linked(Sampler())
for start in (None, lambda: None):
    done = subprocess.run([sys.executable, "-c", "print('fine')"], preexec_fn=start, capture_output=True, text=True)
    say(output=done.stdout, errors=done.stderr, code=done.returncode)
"""
    with Application(steady_agent.run_dir, script, OTEL_SERVICE_NAME=service) as application:
        for turn in (1, 2):
            report = application.wait(turn)
            assert (report["output"], report["errors"], report["code"]) == ("fine\n", "", 0)
        assert (application.end(), application.errors) == (0, [])
