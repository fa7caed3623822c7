"""Who a registration is of: the process that connected, and nobody who has its pid later."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from spandial_agent.processes import pidfd as pidfds
from spandial_agent.table.rates import RateTable
from spandial_agent.targets.targets import Targets
from tests.agent_process import eventually
from tests.spandial_agent.running_registrar import RunningRegistrar, hello

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root chooses pids and becomes somebody else")

_SOMEBODY = 64321

# Connects as somebody without privileges, and ends; its child has the connection, and says what it is told to say.
_CONNECTS_AND_ENDS = f"""
import os, socket, sys
os.setgroups([]); os.setresgid(*[{_SOMEBODY}] * 3); os.setresuid(*[{_SOMEBODY}] * 3)
peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
peer.connect(sys.argv[1])
if os.fork():
    os._exit(0)
peer.send(sys.stdin.readline().encode())
print(peer.recv(1 << 16).decode(), flush=True)
"""

# Connects as root, becomes somebody else, and registers then.
_DROPS_PRIVILEGES = f"""
import os, socket, sys
peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
peer.connect(sys.argv[1])
os.setgroups([]); os.setresgid(*[{_SOMEBODY}] * 3); os.setresuid(*[{_SOMEBODY}] * 3)
peer.send(sys.stdin.readline().encode())
print(peer.recv(1 << 16).decode(), flush=True)
sys.stdin.readline()
"""

# Connects as somebody whose effective user becomes root's, as in a set-user-id program.
_GAINS_PRIVILEGES = f"""
import os, socket, sys
peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
os.seteuid({_SOMEBODY})
peer.connect(sys.argv[1])
os.seteuid(0)
peer.send(sys.stdin.readline().encode())
print(peer.recv(1 << 16).decode(), flush=True)
"""


@pytest.fixture
def running(table: RateTable, targets: Targets) -> Iterator[RunningRegistrar]:
    """Where everybody may connect."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        running = RunningRegistrar(Path(folder) / "app.sock", table, targets)
        yield running
        running.stop()
    assert running.raised == []


def talks(program: str, path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-S", "-c", program, str(path)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def registers(process: subprocess.Popen[str]) -> dict[str, object]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(hello().decode() + "\n")
    process.stdin.flush()
    return dict(json.loads(process.stdout.readline()))


@contextmanager
def taking_the_pid(pid: int) -> Iterator[None]:
    """A process of root's that has this pid."""
    taken: list[subprocess.Popen[bytes]] = []

    def take() -> bool:
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        taken.append(subprocess.Popen(["sleep", "600"]))
        return taken[-1].pid == pid

    try:
        eventually(take, f"a process has the pid {pid}")
        yield
    finally:
        for process in taken:
            process.kill()
            process.wait()


@pytest.fixture(params=["peer's pidfd", "pid at accept"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """This kernel, and one that does not know SO_PEERPIDFD."""
    if request.param == "pid at accept":
        monkeypatch.setattr(pidfds, "_SO_PEERPIDFD", 9999)
    return str(request.param)


def test_nothing_registers_for_a_process_that_ended_and_whose_pid_somebody_else_has(
    running: RunningRegistrar, kernel: str
) -> None:
    attacker = talks(_CONNECTS_AND_ENDS, running.path)
    eventually(lambda: running.registrar._waiting, "the connection is accepted")
    attacker.wait()
    with taking_the_pid(attacker.pid):
        answer = registers(attacker)
        assert f"process {attacker.pid}, which connected, has ended" in str(answer["error"])
        assert len(running.targets) == 0
    attacker.communicate()


def test_nothing_registers_for_a_process_that_ended(running: RunningRegistrar, kernel: str) -> None:
    attacker = talks(_CONNECTS_AND_ENDS, running.path)
    eventually(lambda: running.registrar._waiting, "the connection is accepted")
    attacker.wait()
    assert "error" in registers(attacker)
    assert len(running.targets) == 0
    attacker.communicate()


def test_a_process_that_has_become_root_since_it_connected_is_refused(running: RunningRegistrar) -> None:
    attacker = talks(_GAINS_PRIVILEGES, running.path)
    assert f"connected as user {_SOMEBODY}, and is user 0 now" in str(registers(attacker)["error"])
    assert len(running.targets) == 0
    attacker.communicate()


def test_an_application_that_drops_roots_privileges_registers_as_whom_it_has_become(running: RunningRegistrar) -> None:
    application = talks(_DROPS_PRIVILEGES, running.path)
    assert "row" in registers(application)
    [target] = list(running.targets)
    assert (target.pid, target.uid) == (application.pid, _SOMEBODY)
    application.communicate("\n")


def test_a_peer_is_known_by_a_descriptor_of_its_process(kernel: str) -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far:
        descriptor = pidfds.peer_pidfd(near, os.getpid())
    assert not pidfds.has_ended(descriptor)
    os.close(descriptor)
    child = subprocess.Popen(["sleep", "600"])
    descriptor = os.pidfd_open(child.pid)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert pidfds.has_ended(descriptor)
    child.wait()
    assert pidfds.has_ended(descriptor)
    os.close(descriptor)
