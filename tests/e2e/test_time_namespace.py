"""An agent in a time namespace: the kernel's times are the host's, and are told as what the wall clock showed."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent_process import AgentProcess
from tests.e2e.databases import Redis
from tests.e2e.entry_stream import EntryStream
from tests.e2e.programs.process import Load
from tests.e2e.test_spans import found, received
from tests.spandial_agent.spans.otlp_receiver import OtlpReceiver

pytest_plugins = ["tests.e2e.programs.fixtures"]
pytestmark = [
    pytest.mark.kernel,
    pytest.mark.e2e,
    pytest.mark.skipif(not os.path.exists("/proc/self/ns/time"), reason="time namespaces are of Linux 5.6"),
]

SERVICE = f"till-{os.getpid()}-time"
SLACK_S = 60  # of 100,000

# Ends with the agent, and passes SIGTERM on to it: it is the first process in the time namespace.
LAUNCHER = f"""#!{sys.executable}
import ctypes, os, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x80) == 0, os.strerror(ctypes.get_errno())  # CLONE_NEWTIME
with open("/proc/self/timens_offsets", "w") as file:
    file.write("boottime 100000 0")
agent = os.fork()
if not agent:
    libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])
signal.signal(signal.SIGTERM, lambda *_: os.kill(agent, signal.SIGTERM))
sys.exit(os.waitstatus_to_exitcode(os.waitpid(agent, 0)[1]))
"""


@pytest.fixture
def agent(tmp_path: Path, receiver: OtlpReceiver) -> Iterator[AgentProcess]:
    launcher = tmp_path / "python"
    launcher.write_text(LAUNCHER)
    launcher.chmod(0o755)
    settings = {"SPANDIAL_CAPTURE_TLS": "off", "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint("http")}
    agent = AgentProcess(tmp_path / "agent", python=str(launcher), **settings)
    agent.start()
    yield agent
    agent.stop()


def test_entries_and_spans_have_the_time_of_the_wall_clock(
    agent: AgentProcess, receiver: OtlpReceiver, redis_server: Redis
) -> None:
    with Load("redis", {"OTEL_SERVICE_NAME": SERVICE}) as load:
        found(agent, SERVICE)
        watching = EntryStream(agent, SERVICE)
        before = time.time()
        load.run("commands", address=redis_server.address(), count=50)
        spans = received(receiver, 50, SERVICE)
        after = time.time()
    assert len(watching.entries) == 50
    times = [entry["time"] for entry in watching.entries] + [span.start_ns / 1e9 for span in spans]
    assert before - SLACK_S < min(times) <= max(times) < after + SLACK_S
