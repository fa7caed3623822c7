"""Every loss is told by /stats, /metrics and the command line alike, and explained by the documentation."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.agent_process import PATIENCE_S, AgentProcess, eventually

pytestmark = [pytest.mark.kernel, pytest.mark.e2e]

DOCUMENT = Path(__file__).parents[2] / "docs" / "losses.md"

# Waits for a line, then receives a request into no buffer at all (tcp(7), MSG_TRUNC).
UNREADABLE = """
import ctypes, socket, sys
with socket.create_server(("127.0.0.1", 0)) as listener:
    client = socket.create_connection(listener.getsockname())
    server, _ = listener.accept()
    sys.stdin.readline()
    client.send(b"GET / HTTP/1.1\\r\\nhost: x\\r\\n\\r\\n")
    ctypes.CDLL(None).recv(server.fileno(), None, 4096, socket.MSG_TRUNC)
    sys.stdin.readline()
"""


def documented() -> list[str]:
    return re.findall(r"^\| `(\w+)` \|", DOCUMENT.read_text(), re.MULTILINE)


def exposed(agent: AgentProcess) -> dict[str, float]:
    text = agent.http.get("/metrics").text
    return {
        sample.labels["reason"]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "spandial_losses_total"
    }


def printed(agent: AgentProcess, *options: str) -> str:
    command = [sys.executable, "-m", "spandial_agent", "stats", *options]
    environment = {**os.environ, **agent.settings}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=True
    ).stdout


def register_nonsense(agent: AgentProcess) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
        stranger.connect(str(agent.run_dir / "app.sock"))
        stranger.send(b"hello")
        assert b"error" in stranger.recv(4096)


def test_every_loss_is_shown_everywhere(make_agent: Callable[..., AgentProcess]) -> None:
    agent = make_agent(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1")
    losses = agent.get("/stats")["losses"]
    assert sorted(losses) == sorted(documented())
    assert exposed(agent) == losses == dict.fromkeys(losses, 0)
    assert printed(agent).splitlines()[-1] == "losses: none"

    for _ in range(2):
        register_nonsense(agent)
    environment = {**os.environ, "OTEL_SERVICE_NAME": "shop"}
    command = [sys.executable, "-c", UNREADABLE]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, text=True) as shop:
        eventually(lambda: agent.target(shop.pid), "it is found")
        assert shop.stdin is not None
        shop.stdin.write("now\n")
        shop.stdin.flush()
        eventually(lambda: agent.get("/stats")["losses"]["unreadable"], "the loss is counted")
        shop.stdin.close()

    expected = {**losses, "registration_refused": 2, "unreadable": 1}
    assert agent.get("/stats")["losses"] == expected
    assert exposed(agent) == expected
    assert set(printed(agent).splitlines()[-1].removeprefix("losses: ").split(", ")) == {
        "registration_refused 2",
        "unreadable 1",
    }
    assert json.loads(printed(agent, "--json"))["losses"] == expected
