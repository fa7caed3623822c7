"""An application in a time namespace obeys like any other: leases go by the host's clock."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spandial.clock import boottime_ns, namespace_offset_ns, parse_offset_ns
from tests.agent_process import PATIENCE_S, AgentProcess, import_path

_UNSHARE = """
import ctypes, os, sys
assert ctypes.CDLL(None, use_errno=True).unshare(0x80) == 0  # CLONE_NEWTIME
with open("/proc/self/timens_offsets", "w") as file:
    file.write(f"boottime {sys.argv[1]} 0")
"""

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


makes_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None or not os.path.exists("/proc/self/ns/time"),
    reason="only root can make a time namespace, with unshare, and since Linux 5.6",
)


def said(*command: str, **environment: str) -> str:
    """What a program prints."""
    environ = {**os.environ, **environment, **import_path()}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@makes_namespaces
@pytest.mark.parametrize("offset", [100_000, -100])
def test_an_application_in_a_time_namespace_obeys(steady_agent: AgentProcess, service: str, offset: int) -> None:
    steady_agent.set(0, service=service)
    command = ["unshare", "--time", f"--boottime={offset}", "--fork", sys.executable, "-c", _SCRIPT]
    assert said(*command, SPANDIAL_RUN_DIR=str(steady_agent.run_dir), OTEL_SERVICE_NAME=service) == "DROP"


@makes_namespaces
@pytest.mark.parametrize("child", ["", "if os.fork(): sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))"])
def test_an_application_obeys_that_has_made_a_time_namespace_for_its_children(
    steady_agent: AgentProcess, service: str, child: str
) -> None:
    steady_agent.set(0, service=service)
    command = [sys.executable, "-c", _UNSHARE + child + _SCRIPT, "-100"]
    assert said(*command, SPANDIAL_RUN_DIR=str(steady_agent.run_dir), OTEL_SERVICE_NAME=service) == "DROP"


@makes_namespaces
def test_the_hosts_clock_is_told_on_both_sides_of_a_new_time_namespace() -> None:
    program = """
from spandial.clock import boottime_ns, namespace_offset_ns
if os.fork():
    os.wait()
print(namespace_offset_ns(), boottime_ns(namespace_offset_ns()))
"""
    before = boottime_ns(namespace_offset_ns())
    lines = said(sys.executable, "-c", _UNSHARE + program, "5000").splitlines()
    after = boottime_ns(namespace_offset_ns())
    (child, child_ns), (parent, parent_ns) = (map(int, line.split()) for line in lines)
    assert (child, parent) == (5000 * 10**9, 0)
    assert before <= child_ns <= parent_ns <= after


@makes_namespaces
def test_a_child_in_a_time_namespace_of_its_own_inherits_the_lease() -> None:
    """It knows nothing but its parent's table until it has registered itself."""
    program = """
import time
from types import SimpleNamespace
from spandial import abi, link
from spandial.clock import boottime_ns, namespace_offset_ns
table = object.__new__(link._Table)
table._offset_ns = namespace_offset_ns()
table._words = [0] * abi.ROW_WORDS
table._words[abi.HEADER_LEASE] = boottime_ns(table._offset_ns) + 500 * 10**9
table.row = table._words
if not os.fork():
    print(400 < link._Inherited(table).lease_ends_in() <= 500, flush=True)
    os._exit(0)
os.wait()
"""
    assert said(sys.executable, "-c", _UNSHARE + program, "100000") == "True"
