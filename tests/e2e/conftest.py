"""What end-to-end tests share: a receiver of spans, and an agent on each capture path."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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


@pytest.fixture(scope="module", params=["socket", "sys_exit"])
def path(request: pytest.FixtureRequest) -> str:
    """The capture path; of a module, so that the tests of one path come one after the other."""
    return str(request.param)


@pytest.fixture
def any_agent(path: str, share_agent: Callable[..., AgentProcess]) -> AgentProcess:
    """An agent on each of the two capture paths."""
    agent = share_agent(SPANDIAL_CAPTURE=path)
    assert agent.get("/healthz")["capture"] == path
    return agent
