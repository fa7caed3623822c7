"""The quickstart shows what it promises, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.agent_process import COMPILED, PATIENCE_S

pytestmark = [pytest.mark.kernel, pytest.mark.e2e, pytest.mark.needs("node")]

ENVIRONMENT = {**os.environ, "SPANDIAL_COMPILED_DIR": str(COMPILED)}
QUICKSTART = Path(__file__).parent.parent.parent / "deploy" / "demo" / "quickstart.py"


def traces() -> tuple[set[str], set[str], set[bytes]]:
    """Processes, files and mounts that a quickstart could leave."""
    commands = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            line = os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" "))
        except OSError:
            continue
        if "spandial-quickstart" in line or str(QUICKSTART.parent) in line:
            commands.add(line)
    files = {name for name in os.listdir(tempfile.gettempdir()) if name.startswith("spandial-quickstart-")}
    mounts = {line for line in Path("/proc/mounts").read_bytes().splitlines() if b"spandial" in line}
    return commands, files, mounts


def test_without_a_person_it_turns_the_dial_up_and_back_and_checks_itself() -> None:
    before = traces()
    command = [sys.executable, QUICKSTART, "--seconds", "9"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"gray turned up to 100 %, obeyed by \d+ targets? ", done.stdout)  # others may run gray ones here
    assert "gray turned back to 1 %" in done.stdout
    assert "/sampling?rate=100&env=gray" in done.stdout
    for check in ("shop 1: kernel and hook agree", "shop 2: kernel and hook agree", "front 1: the kernel saw all"):
        assert any(line.startswith("ok") and check in line for line in done.stdout.splitlines()), done.stdout
    assert traces() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_nothing_behind(number: signal.Signals) -> None:
    before = traces()
    process = subprocess.Popen([sys.executable, QUICKSTART], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    # Once it says that, everything runs.
    assert any("turn it yourself" in line for line in process.stdout)
    process.send_signal(number)
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == (0 if number == signal.SIGINT else 143)
    assert traces() == before


def test_too_short_a_run_is_refused_with_the_reason() -> None:
    done = subprocess.run([sys.executable, QUICKSTART, "--seconds", "1"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "at least 6" in done.stderr
