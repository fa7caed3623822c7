"""What end-to-end tests share: a receiver of spans, and two agents, one on each capture path."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.agent_process import AgentProcess
from tests.spandial_agent.spans.otlp_receiver import OtlpReceiver, receiver_command


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[OtlpReceiver]:
    if receiver_command() is None:
        pytest.fail("there is no OTLP receiver: run deploy/setup")
    receiver = OtlpReceiver(tmp_path)
    receiver.start()
    yield receiver
    receiver.kill()


@pytest.fixture(scope="module")
def _module_agents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[AgentProcess]]:
    paths = ("socket", "sys_exit")
    agents = [
        AgentProcess(tmp_path_factory.mktemp("agent"), SPANDIAL_CAPTURE=path, SPANDIAL_CAPTURE_TLS="off")
        for path in paths
    ]
    with ThreadPoolExecutor() as pool:
        list(pool.map(AgentProcess.start, agents))
        assert [agent.get("/healthz")["capture"] for agent in agents] == [*paths]
        yield agents
        list(pool.map(AgentProcess.stop, agents))


@pytest.fixture
def both_agents(_module_agents: list[AgentProcess]) -> list[AgentProcess]:
    """An agent on each capture path, socket tracepoints and sys_exit: both capture the very same processes. Tests of a
    module share them, one after the other."""
    for agent in _module_agents:
        agent.begin_anew()
    return _module_agents
