"""An application in a time namespace obeys like any other: leases go by the host's clock."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spandial.clock import parse_offset_ns
from tests.agent_process import PATIENCE_S, AgentProcess, import_path

_SCRIPT = """
import time
from opentelemetry.sdk.trace.sampling import Decision
from spandial import Sampler
sampler = Sampler("100%")
end = time.monotonic() + 100
while time.monotonic() < end:
    if sampler.should_sample(None, 1, "x").decision is Decision.DROP:
        time.sleep(1.5)  # the lease is looked at each second
        print(sampler.should_sample(None, 1, "x").decision.name)
        break
    time.sleep(0.02)
"""


@given(st.integers(-(10**9), 10**9), st.integers(0, 10**9 - 1))
def test_the_offset_of_the_boot_clock(seconds: int, ns: int) -> None:
    text = f"monotonic           1         0\nboottime     {seconds:10}         {ns}\n"
    assert parse_offset_ns(text) == seconds * 10**9 + ns


@given(st.text())
def test_nonsense_is_no_offset(text: str) -> None:
    assert isinstance(parse_offset_ns(text), int)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a time namespace")
@pytest.mark.parametrize("offset", [100_000, -100])
def test_an_application_in_a_time_namespace_obeys(steady_agent: AgentProcess, service: str, offset: int) -> None:
    if shutil.which("unshare") is None or not os.path.exists("/proc/self/ns/time"):
        pytest.skip("this host has no time namespaces")
    steady_agent.set(0, service=service)
    environment = {**os.environ, "SPANDIAL_RUN_DIR": str(steady_agent.run_dir), "OTEL_SERVICE_NAME": service}
    command = ["unshare", "--time", f"--boottime={offset}", "--fork", sys.executable, "-c", _SCRIPT]
    done = subprocess.run(
        command, env={**environment, **import_path()}, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert (done.stdout.strip(), done.returncode) == ("DROP", 0), done.stderr
