"""A proxy that strips the trace context is noticed, and one that passes it on is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.agent_process import PATIENCE_S, AgentProcess, eventually
from tests.e2e.services import Server, nginx, node, uvicorn

pytestmark = [pytest.mark.kernel, pytest.mark.e2e, pytest.mark.needs("nginx", "node")]


@contextmanager
def asking(server: Server, url: str) -> Iterator[None]:
    """Requests to the service, each of which makes it ask this address; none fails."""
    stop = threading.Event()
    failed: list[object] = []

    def ask() -> None:
        with httpx.Client() as client:
            while not stop.wait(0.002):
                answer = client.get(f"{server.url}/ask", params={"url": url})
                if answer.text != "200":
                    failed.append(answer.text)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert failed == []


def doctor(agent: AgentProcess, *options: str) -> str:
    command = [sys.executable, "-m", "spandial_agent", "doctor", *options]
    environment = {**os.environ, **agent.settings}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S).stdout


def context_lost(agent: AgentProcess, client: int) -> list[dict[str, Any]]:
    return [pair for pair in agent.get("/stats")["context_lost"] if pair["client"]["pid"] == client]


@pytest.mark.parametrize(("path", "prefix"), [("socket", ""), ("sys_exit", "/api")])
def test_a_proxy_that_strips_traceparent_is_told(
    make_agent: Callable[..., AgentProcess], path: str, prefix: str, tmp_path: Path
) -> None:
    agent = make_agent(SPANDIAL_CAPTURE=path, SPANDIAL_PROPAGATION_SECONDS="2")
    with node(tmp_path) as server:
        port = server.url.rpartition(":")[2]
        strips = f"rewrite ^{prefix}(/.*)$ $1 break; proxy_pass http://127.0.0.1:{port}; "
        with (
            nginx([agent], tmp_path, location=strips + 'proxy_set_header traceparent "";') as proxy,
            uvicorn(agent, tmp_path) as client,
        ):
            with asking(client, f"{proxy.url}{prefix}/pay?card=1"):
                [pair] = eventually(lambda: context_lost(agent, client.pid), "the loss is noticed")
                told = doctor(agent)
            assert pair["client"] == {"pid": client.pid, "service": "shop", "version": "1", "env": "stable"}
            assert pair["server"] == {"pid": server.pid, "service": "front", "version": "1", "env": "stable"}
            assert pair["count"] >= 10
            assert (pair["example"]["method"], pair["example"]["path"]) == ("GET", f"{prefix}/pay")
            [line] = [line for line in told.splitlines() if "context lost" in line and f"(pid {client.pid})" in line]
            assert f"come to front (pid {server.pid}) without" in line
            assert json.loads(doctor(agent, "--json"))["context_lost"]


def test_a_proxy_that_passes_traceparent_on_is_not(make_agent: Callable[..., AgentProcess], tmp_path: Path) -> None:
    agent = make_agent(SPANDIAL_PROPAGATION_SECONDS="1")
    with node(tmp_path) as server:
        passes = f"proxy_pass {server.url};"
        with nginx([agent], tmp_path, location=passes) as proxy, uvicorn(agent, tmp_path) as client:
            plain = httpx.Client()  # others' requests come without a trace context, at the same path
            with asking(client, f"{proxy.url}/pay"):
                for _ in range(300):
                    plain.get(f"{proxy.url}/pay")
                counts = eventually(
                    lambda: next(
                        kinds["http"]["kernel"]
                        for target in agent.get("/stats")["targets"]
                        if target["pid"] == server.pid and (kinds := target["kinds"])
                    ),
                    "the server is counted",
                )
            assert counts["seen_traced"] > 10
            assert counts["seen"] - counts["seen_traced"] >= 300
            assert context_lost(agent, client.pid) == []
