"""The life of the link between an application and its agent."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.agent_process import AgentProcess, eventually
from tests.spandial.applications import Application, hook_counts, run

MakeAgent = Callable[..., AgentProcess]
SHOP = {"OTEL_SERVICE_NAME": "shop"}


@pytest.fixture
def future_run_dir(tmp_path: Path) -> Path:
    """Where the first agent that the test makes will be."""
    return tmp_path / "agent0" / "run"


def make(make_agent: MakeAgent, lease_seconds: str) -> AgentProcess:
    return make_agent(SPANDIAL_TABLE="memfd", SPANDIAL_LEASE_SECONDS=lease_seconds)


def test_without_an_agent_the_default_holds_and_one_line_says_so(tmp_path: Path) -> None:
    with Application(tmp_path / "nowhere", DEFAULT="30%") as application:
        application.wait(100)
        assert application.end() == 0
        assert application.rates() == [30]
        assert len(application.errors) == 1
        assert f"no agent at {tmp_path}/nowhere/app.sock" in application.errors[0]


def test_an_application_that_ends_at_once_ends_as_it_would_without_a_sampler(tmp_path: Path) -> None:
    assert run(tmp_path, "Sampler()").returncode == 0
    assert run(tmp_path, "Sampler(); sys.exit(3)").returncode == 3


def test_what_is_no_listening_socket_is_no_agent(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stale:
        stale.bind(str(tmp_path / "app.sock"))
    with Application(tmp_path, DEFAULT="30%") as application:
        application.wait(20)
        (tmp_path / "app.sock").unlink()
        (tmp_path / "app.sock").write_text("no socket")
        application.wait(100)
        assert (application.end(), application.rates(), len(application.errors)) == (0, [30], 1)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start an application as somebody else")
def test_without_permission_to_reach_the_agent_the_default_holds(make_agent: MakeAgent) -> None:
    agent = make(make_agent, "10")
    agent.set(70)
    os.chmod(agent.run_dir.parent.parent, 0o755)
    os.chmod(agent.run_dir, 0o700)
    with Application(agent.run_dir, user=65534, DEFAULT="30%") as application:
        application.wait(50)
        assert application.rates() == [30]
        assert ["Permission denied" in line for line in application.errors] == [True]
        assert application.end() == 0


def test_a_linked_application_obeys_each_change_at_once(steady_agent: AgentProcess, service: str) -> None:
    steady_agent.set(0, service=service)
    with Application(steady_agent.run_dir, OTEL_SERVICE_NAME=service) as application:
        assert application.obeys(0)
        for rate in (30, 100, 1, 99, 0, 50):
            steady_agent.set(rate, service=service)
            assert application.rate() == rate


def test_where_no_rule_applies_the_applications_own_default_holds(steady_agent: AgentProcess, service: str) -> None:
    steady_agent.set(60, service="somebody-else")
    with Application(steady_agent.run_dir, OTEL_SERVICE_NAME=service, DEFAULT="30%") as application:
        target = steady_agent.hooked(service)[0]
        state = target["rates"]["http"]
        assert target["pid"] == application.pid
        assert (state["rate"], state["mode"], state["rule"]) == (30, "follow", "default")
        assert application.rate() == 30


def test_a_linked_application_ends_without_a_word(steady_agent: AgentProcess, service: str) -> None:
    with Application(steady_agent.run_dir, OTEL_SERVICE_NAME=service, PYTHONDEVMODE="1") as application:
        steady_agent.hooked(service)
        application.report()
        assert (application.end(), application.errors) == (0, [])
    eventually(lambda: steady_agent.target(application.pid) is None, "the agent noticed")


def test_every_thread_and_task_obeys(steady_agent: AgentProcess, service: str) -> None:
    steady_agent.set(40, service=service)
    script = """
import asyncio
sampler = Sampler()

async def task(name):
    while True:
        report(sampler, name=name)
        await asyncio.sleep(0.01)

async def tasks():
    await asyncio.gather(*(task(f"task {number}") for number in range(3)))

for number in range(3):
    threading.Thread(target=lambda: asyncio.run(task(f"thread of its own")), daemon=True).start()
threading.Thread(target=lambda: asyncio.run(tasks()), daemon=True).start()
serve(sampler)
"""
    with Application(steady_agent.run_dir, script, OTEL_SERVICE_NAME=service) as application:
        assert application.obeys(40)
        steady_agent.set(70, service=service)
        settled = len(application.reports()) + 7  # one of each thread may be under way
        application.wait(settled + 50)
        assert {(r.get("name", ""), r["rate"]) for r in application.reports()[settled:]} == {
            (name, 70) for name in ("", "thread of its own", "task 0", "task 1", "task 2")
        }
        assert application.end() == 0


def test_statistics_count_every_decision_once_asked(steady_agent: AgentProcess, service: str) -> None:
    steady_agent.set(30, service=service)
    script = "sampler = linked(Sampler())\nfor line in sys.stdin: say(kept=decide(sampler, int(line)))"
    with Application(steady_agent.run_dir, script, OTEL_SERVICE_NAME=service) as application:
        steady_agent.hooked(service)
        for turn in range(1, 4):
            application.send("1000")
            assert application.wait(turn)["kept"] == 300
            wanted = {"root_kept": 300 * turn, "root_dropped": 700 * turn}
            assert eventually(lambda: hook_counts(steady_agent, application.pid) == wanted, "exact counts")  # noqa: B023


def test_two_samplers_of_one_process_obey_and_count_as_one_target(steady_agent: AgentProcess, service: str) -> None:
    steady_agent.set(30, service=service)
    script = """
samplers = [linked(Sampler()), linked(Sampler())]
for line in sys.stdin: say(kept=[decide(sampler, int(line)) for sampler in samplers])
"""
    with Application(steady_agent.run_dir, script, OTEL_SERVICE_NAME=service) as application:
        application.send("100")
        assert application.wait(1)["kept"] == [30, 30]
        wanted = {"root_kept": 60, "root_dropped": 140}
        assert eventually(lambda: hook_counts(steady_agent, application.pid) == wanted, "the counts of both")
        assert len(steady_agent.hooked(service)) == 1


def test_where_no_thread_can_be_had_the_default_holds(steady_agent: AgentProcess, service: str) -> None:
    steady_agent.set(70, service=service)
    script = """
def start(thread):
    raise RuntimeError("can't start new thread")

threading.Thread.start = start
report(Sampler("30%"))
"""
    done = run(steady_agent.run_dir, script, OTEL_SERVICE_NAME=service)
    assert (done.returncode, json.loads(done.stdout)["rate"]) == (0, 30)
    assert done.stderr == "no thread for the link to the agent (can't start new thread); the default rate holds\n"


def test_an_application_of_another_abi_is_refused_and_unharmed(steady_agent: AgentProcess, service: str) -> None:
    steady_agent.set(70, service=service)
    script = "from spandial import abi\nabi.ABI = 1\nserve(Sampler('30%'))"
    with Application(steady_agent.run_dir, script, OTEL_SERVICE_NAME=service) as application:
        eventually(lambda: application.errors, "it says that it was refused")
        application.report()
        assert (application.end(), application.rates()) == (0, [30])
        assert ["the agent speaks ABI version 2, the process 1" in line for line in application.errors] == [True]


def test_an_agent_that_comes_late_is_found_and_obeyed(make_agent: MakeAgent, future_run_dir: Path) -> None:
    with Application(future_run_dir, DEFAULT="30%", **SHOP) as application:
        application.wait(50)
        agent = make(make_agent, "10")
        agent.set(70, service="shop")
        assert application.obeys(70)
        assert (application.end(), application.rates(), len(application.errors)) == (0, [30, 70], 1)


@pytest.mark.parametrize(("node_default", "fallback"), [(None, 30), (20, 20)])
def test_the_rates_of_a_killed_agent_hold_until_its_lease_ends(
    make_agent: MakeAgent, node_default: int | None, fallback: int
) -> None:
    agent = make(make_agent, "1")
    agent.set(70, service="shop")
    if node_default is not None:
        agent.set(node_default)
    with Application(agent.run_dir, DEFAULT="30%", **SHOP) as application:
        assert application.obeys(70)
        agent.kill()
        assert application.obeys(fallback)
        assert application.rates()[-2:] == [70, fallback]
        assert len(application.errors) == 2
        assert any("is gone" in line and "its last rates hold" in line for line in application.errors)
        assert any("lease ran out; the fallback rate holds" in line for line in application.errors)
        assert application.end() == 0


def test_a_stopped_agent_is_obeyed_again_once_it_goes_on(make_agent: MakeAgent) -> None:
    agent = make(make_agent, "1")
    agent.set(70, service="shop")
    with Application(agent.run_dir, DEFAULT="30%", **SHOP) as application:
        assert application.obeys(70)
        agent.signal(signal.SIGSTOP)
        assert application.obeys(30)
        agent.signal(signal.SIGCONT)
        assert application.obeys(70)
        agent.set(80, service="shop")
        assert application.obeys(80)


@pytest.mark.parametrize("end", [AgentProcess.kill, AgentProcess.stop])
def test_a_restarted_agent_is_obeyed_again_and_its_rules_hold_all_the_while(
    make_agent: MakeAgent, end: Callable[[AgentProcess], object]
) -> None:
    agent = make(make_agent, "60")
    agent.set(70, service="shop")
    with Application(agent.run_dir, DEFAULT="30%", **SHOP) as application:
        assert application.obeys(70)
        for rate in (80, 90):
            end(agent)
            agent.start()
            agent.hooked("shop")
            agent.set(rate, service="shop")
            assert application.obeys(rate)
        assert application.rates()[-3:] == [70, 80, 90]
        assert application.end() == 0
