"""An agent that the tests of this folder share, and a service of its own for each."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest

from tests.agent_process import AgentProcess

_numbers = count(1)


@pytest.fixture(scope="package")
def steady_agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    """An agent without the kernel side that no test disturbs."""
    agent = AgentProcess(tmp_path_factory.mktemp("steady") / "agent", SPANDIAL_TABLE="memfd")
    agent.start()
    yield agent
    agent.stop()


@pytest.fixture
def service() -> str:
    """The name of a service that no other test uses."""
    return f"service{next(_numbers)}"
