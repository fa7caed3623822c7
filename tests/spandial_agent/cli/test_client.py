"""What the command line says of an agent that does not answer."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from spandial_agent.cli import client
from spandial_agent.cli.client import Client
from spandial_agent.errors import AgentUnreachable


def test_no_agent_and_one_that_does_not_answer_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AgentUnreachable, match="start one with 'spandial agent'"):
        Client(tmp_path).request("GET", "/healthz")
    monkeypatch.setattr(client, "_PATIENCE_S", 0.1)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "api.sock"))
        listener.listen()
        with pytest.raises(AgentUnreachable, match=r"has not answered within 0\.1 s: see its log"):
            Client(tmp_path).request("GET", "/healthz")
