"""What the tests share: what a test needs, and the agent as a process."""

from __future__ import annotations

import os
import platform
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from spandial_agent.kernel.probe import missing_for_kernel
from tests.agent_process import AgentProcess

settings.register_profile("default", deadline=None)
settings.load_profile("default")

_REQUIRED = os.environ.get("SPANDIAL_REQUIRE_KERNEL") == "1"


def pytest_configure() -> None:
    # A shell has its background jobs ignore it, and whatever they start: Ctrl-C could not be tried.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    missing = " ".join(missing_for_kernel()) or "everything is there"
    return f"kernel {platform.release()}, kernel side: {missing}"


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("kernel"):
        missing = missing_for_kernel()
        if os.geteuid() != 0:
            missing.insert(0, "the tests do not run as root.")
        if missing:
            (pytest.fail if _REQUIRED else pytest.skip)(" ".join(missing))
    for marker in item.iter_markers("needs"):
        for program in marker.args:
            if shutil.which(program) is None:
                (pytest.fail if _REQUIRED else pytest.skip)(f"{program} is not installed: run deploy/setup")


@pytest.fixture
def make_agent(tmp_path: Path) -> Iterator[Callable[..., AgentProcess]]:
    """Start agents, each in a folder of its own unless told otherwise; all are stopped at the end. They follow no TLS
    unless told to: that would cost each a second."""
    agents: list[AgentProcess] = []

    def make(**settings: str) -> AgentProcess:
        agent = AgentProcess(tmp_path / f"agent{len(agents)}", **{"SPANDIAL_CAPTURE_TLS": "off", **settings})
        agents.append(agent)
        agent.start()
        return agent

    yield make
    for agent in agents:
        agent.stop()


@pytest.fixture(scope="module")
def _module_agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., AgentProcess]]:
    # One at a time: two would both capture every process of the tests.
    running: list[tuple[dict[str, str], AgentProcess]] = []

    def stop() -> None:
        for _, agent in running:
            agent.stop()
        running.clear()

    def find(**settings: str) -> AgentProcess:
        if not running or running[0][0] != settings:
            stop()
            agent = AgentProcess(tmp_path_factory.mktemp("agent"), **{"SPANDIAL_CAPTURE_TLS": "off", **settings})
            running.append((settings, agent))
            agent.start()
        return running[0][1]

    yield find
    stop()


@pytest.fixture
def share_agent(_module_agent: Callable[..., AgentProcess]) -> Callable[..., AgentProcess]:
    """An agent that tests of a module share, one after the other with the same settings: each begins without rules, and
    without the processes of those before."""

    def share(**settings: str) -> AgentProcess:
        agent = _module_agent(**settings)
        agent.begin_anew()
        return agent

    return share


@pytest.fixture
def agent(make_agent: Callable[..., AgentProcess]) -> AgentProcess:
    """A running agent with the best kernel side there is."""
    return make_agent()


@pytest.fixture
def memfd_agent(make_agent: Callable[..., AgentProcess]) -> AgentProcess:
    """A running agent without the kernel side."""
    return make_agent(SPANDIAL_TABLE="memfd")
