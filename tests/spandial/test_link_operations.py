"""Rules by operation through the link: real descriptors, forks, leases and agents that come and go."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spandial.abi import Flag, encode_word
from spandial.sheet import encode_block
from tests.agent_process import AgentProcess, eventually
from tests.spandial.applications import Application
from tests.spandial.fake_agent import ROW, FakeAgent, answer, page, sheet, table

PATHS = "'/pay/17', '/orders'"
REPORTS = f"serve(Sampler(os.environ.get('DEFAULT')), {PATHS})"
FORKS = f"""
sampler = linked(Sampler("30%"))
report(sampler, paths=[])
sys.stdin.readline()
os.fork()
serve(sampler, {PATHS})
"""
SHOP = {"OTEL_SERVICE_NAME": "shop"}


def paths(application: Application, pid: int | None = None) -> list[int]:
    """The rates of `/pay/17` and `/orders` from now on."""
    found: list[int] = application.report(pid)["paths"]
    return found


def obey(application: Application, pay: int, orders: int, pid: int | None = None) -> bool:
    return bool(eventually(lambda: paths(application, pid) == [pay, orders], f"{pay} % and {orders} % are obeyed"))


def test_the_dial_of_an_operation_is_obeyed_at_once(steady_agent: AgentProcess, service: str) -> None:
    steady_agent.set(10, service=service)
    steady_agent.set(90, service=service, operation="GET /pay*")
    with Application(steady_agent.run_dir, REPORTS, OTEL_SERVICE_NAME=service) as application:
        assert obey(application, 90, 10)
        for pay, orders in ((100, 10), (100, 20), (0, 20), (50, 0)):
            steady_agent.set(pay, service=service, operation="GET /pay*")
            steady_agent.set(orders, service=service)
            assert paths(application) == [pay, orders]
        steady_agent.set(70, service=service, operation="/pay/17")  # another pattern, so another set
        assert paths(application) == [70, 0]
        for operation, rates in (("/pay/17", [50, 0]), ("GET /pay*", [0, 0])):
            selector = {"service": service, "operation": operation}
            assert steady_agent.http.delete("/sampling", params=selector).is_success
            assert paths(application) == rates
        steady_agent.set(80, service=service, operation="/o*")
        assert paths(application) == [0, 80]


@pytest.mark.parametrize("end", [AgentProcess.kill, AgentProcess.stop])
def test_the_rates_of_operations_hold_until_the_lease_ends_and_return_with_an_agent(
    make_agent: Callable[..., AgentProcess], end: Callable[[AgentProcess], object]
) -> None:
    agent = make_agent(SPANDIAL_TABLE="memfd", SPANDIAL_LEASE_SECONDS="1")
    agent.set(20)
    agent.set(90, operation="GET /pay*")
    agent.set(40, operation="GET /orders", service="shop")
    with Application(agent.run_dir, REPORTS, DEFAULT="30%", **SHOP) as application:
        assert obey(application, 90, 40)
        end(agent)
        assert obey(application, 20, 20)
        reported = [report["paths"] for report in application.reports()]
        assert [rates for rates in reported[reported.index([90, 40]) :] if rates not in ([90, 40], [20, 20])] == []
        agent.start()
        assert obey(application, 90, 40)
        agent.set(60, operation="GET /pay*")
        assert paths(application) == [60, 40]


def test_a_stopped_agent_is_obeyed_by_operation_again_once_it_goes_on(make_agent: Callable[..., AgentProcess]) -> None:
    agent = make_agent(SPANDIAL_TABLE="memfd", SPANDIAL_LEASE_SECONDS="1")
    agent.set(20)
    agent.set(90, operation="GET /pay*")
    with Application(agent.run_dir, REPORTS, **SHOP) as application:
        assert obey(application, 90, 20)
        agent.signal(signal.SIGSTOP)
        assert obey(application, 20, 20)
        agent.signal(signal.SIGCONT)
        assert obey(application, 90, 20)


def test_parent_and_child_obey_by_operation(steady_agent: AgentProcess, service: str) -> None:
    steady_agent.set(10, service=service)
    steady_agent.set(90, service=service, operation="GET /pay*")
    with Application(steady_agent.run_dir, FORKS, OTEL_SERVICE_NAME=service) as application:
        application.wait(1)
        application.send("fork")
        parent, child = application.pids(2)
        steady_agent.hooked(service, 2)
        for pay in (90, 30):
            steady_agent.set(pay, service=service, operation="GET /pay*")
            assert obey(application, pay, 10, child)
            assert paths(application, parent) == [pay, 10]
        assert [r["paths"] for r in application.reports(child) if r["paths"] not in ([90, 10], [30, 10])] == []


def test_a_child_that_cannot_reach_the_agent_has_copies_of_the_rates_of_operations_only(tmp_path: Path) -> None:
    def respond(connection: socket.socket, _hello: dict[str, Any]) -> None:
        base = encode_word(70) | Flag.OPERATIONS
        rates = table(base, operations=1 << 32 | 0, next_row=encode_word(95))
        descriptors = [rates, page(), sheet(encode_block([("GET /pay*", ROW + 1)]))]
        socket.send_fds(connection, [answer()], descriptors)
        for descriptor in descriptors:
            os.close(descriptor)

    with Application(tmp_path, FORKS) as application:
        with FakeAgent(tmp_path, respond):
            application.wait(1)
        application.send("fork")
        _, child = application.pids(2)
        assert obey(application, 95, 70, child)
        assert "memfd:fake-" not in Path(f"/proc/{child}/maps").read_text()


@pytest.mark.parametrize("block", [b"", b"\xff" * 4096, encode_block([("GET /pay*", 0)]), encode_block([])])
def test_a_sheet_that_says_nothing_of_use_leaves_the_rates_as_they_are(block: bytes, tmp_path: Path) -> None:
    def respond(connection: socket.socket, _hello: dict[str, Any]) -> None:
        rates = table(encode_word(70) | Flag.OPERATIONS, operations=1 << 32, next_row=encode_word(95))
        descriptors = [rates, page(), sheet(block)]
        socket.send_fds(connection, [answer()], descriptors)
        for descriptor in descriptors:
            os.close(descriptor)

    with FakeAgent(tmp_path, respond), Application(tmp_path, REPORTS) as application:
        assert obey(application, 70, 70)
        assert (application.end(), application.errors) == (0, [])
