"""What the command line says of a switch, beside rates that nobody obeys, and to who may not ask."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from spandial_agent.cli.client import AgentUnreachable, Client
from spandial_agent.cli.tables import off_line, switch_line
from spandial_agent.errors import SpandialError
from tests.spandial_agent.command import run
from tests.spandial_agent.fake_agent import FakeAgent

OFF = {"state": "off", "until": None, "fallback_rate": None}
CAPTURES = {"capture": "socket", "missing": []}


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[FakeAgent]:
    agent = FakeAgent(tmp_path)
    yield agent
    agent.stop()


def test_off_says_what_hooks_keep_and_on_what_is_captured() -> None:
    assert "hooks keep what OTEL_TRACES_SAMPLER_ARG says, 100 % where it is not set" in switch_line(OFF, CAPTURES)
    assert switch_line({**OFF, "fallback_rate": 0.5}, CAPTURES).endswith("hooks keep 0.5 %, the node's default")
    assert switch_line({"state": "on"}, CAPTURES) == "on: the kernel captures, and hooks obey the rules"
    without = {"capture": "off", "missing": ["capture is off: SPANDIAL_CAPTURE=off."]}
    assert switch_line({"state": "on"}, without) == (
        "on: hooks obey the rules; capture is off: capture is off: SPANDIAL_CAPTURE=off."
    )
    assert off_line({"state": "on"}) == ""


def test_rates_that_are_not_obeyed_are_said_not_to_be(agent: FakeAgent) -> None:
    run(agent.settings, "off")
    for command in (["set", "7", "--service", "shop"], ["renew", "10m", "--service", "shop"], ["targets"]):
        assert "the agent is switched off" in run(agent.settings, *command)[1]
    run(agent.settings, "on")
    assert "switched off" not in run(agent.settings, "targets")[1]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")
def test_who_may_not_ask_is_told_so(tmp_path: Path) -> None:
    os.chmod(tmp_path.parent, 0o755)
    tmp_path.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "api.sock"))
        os.chmod(tmp_path / "api.sock", 0o600)
        listener.listen()
        os.seteuid(64321)
        try:
            with pytest.raises(SpandialError, match="run this as root") as found:
                Client(tmp_path).request("GET", "/healthz")
            assert not isinstance(found.value, AgentUnreachable)  # another agent would be no help
        finally:
            os.seteuid(0)
