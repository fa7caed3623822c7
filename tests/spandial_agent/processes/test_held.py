"""A process that is held is that process, or none."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from spandial_agent.processes.held import HeldProcess

WAIT = "import sys; print('ready', flush=True); sys.stdin.readline()"


@pytest.fixture
def child() -> Iterator[subprocess.Popen[str]]:
    yield from running()


def running(*before: str) -> Iterator[subprocess.Popen[str]]:
    command = [*before, sys.executable, "-c", WAIT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def start_time(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def test_after_its_end_nothing_is_read(child: subprocess.Popen[str]) -> None:
    with HeldProcess(child.pid, start_time(child.pid)) as process:
        assert process.read("maps")
        child.kill()
        child.wait()
        for name in ("stat", "maps", "mountinfo"):
            with pytest.raises(ProcessLookupError):
                process.read(name)
        with pytest.raises(ProcessLookupError):
            process.open("exe", os.O_PATH)


def test_one_that_began_at_another_time_is_another(child: subprocess.Popen[str]) -> None:
    began = start_time(child.pid)
    with pytest.raises(ProcessLookupError, match=f"the process {child.pid} that began at {began - 1} has ended"):
        HeldProcess(child.pid, began - 1)


def test_a_process_that_is_not_there_is_not_held() -> None:
    with pytest.raises(FileNotFoundError):
        HeldProcess(1 << 30)


def test_a_process_is_who_it_says(child: subprocess.Popen[str]) -> None:
    with HeldProcess(child.pid) as process:
        credentials = process.credentials()
    assert (credentials.user, credentials.effective) == (os.getuid(), os.geteuid())


@pytest.mark.needs("unshare", "setpriv")
@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_root_of_a_user_namespace_is_who_it_is_outside() -> None:
    """A user who made himself root somewhere is himself."""
    drop = ["setpriv", "--reuid=64321", "--regid=64321", "--clear-groups"]
    with subprocess.Popen(
        [*drop, "unshare", "-U", "-r", "/bin/sh", "-c", "echo ready; read line"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as child:
        assert child.stdout is not None
        if child.stdout.readline() != "ready\n":
            pytest.skip("users may make no namespaces here")
        with HeldProcess(child.pid) as process:
            credentials = process.credentials()
        child.kill()
    assert credentials == (64321, 64321, 64321, 64321)
