"""The follower looks at real processes; what it loads and attaches is a test's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from spandial_agent.capture import attachments as attachments_module
from spandial_agent.capture import follower as follower_module
from spandial_agent.capture.follower import TlsFollower
from spandial_agent.errors import KernelUnavailable
from spandial_agent.processes.held import HeldProcess
from tests.agent_process import eventually
from tests.spandial_agent.capture.mapping_process import HOSTILE, MappingProcess

root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")

WAIT = "import sys; print('ready', flush=True); sys.stdin.readline()"
LOADED = f"import ssl; {WAIT}"
LATER = f"{WAIT}; import ssl; print('loaded', flush=True); sys.stdin.readline()"


class Programs:
    """Stands in for TlsCapture: an attachment is a pipe's ends."""

    def __init__(self, refuses: str = "") -> None:
        self.refuses = refuses
        self.loaded = 0
        self.closed = False
        self.attached: list[tuple[str, list[int]]] = []

    def load(self) -> Any:
        self.loaded += 1
        if self.refuses == "load":
            raise KernelUnavailable(["the kernel refuses the program on_tls_read: no."])
        return self

    def attach(self, path: str, offsets: Mapping[str, int]) -> list[int]:
        if self.refuses == "attach":
            raise OSError(95, "Operation not supported")
        assert {"SSL_read", "SSL_write"} <= set(offsets)
        events = list(os.pipe())
        self.attached.append((os.path.basename(os.readlink(path)), events))
        return events

    def detach(self, links: Sequence[int]) -> None:
        for link in links:
            os.close(link)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def programs() -> Programs:
    return Programs()


@pytest.fixture
def follower(programs: Programs) -> Iterator[TlsFollower]:
    follower = TlsFollower(programs.load)
    yield follower
    follower.close()


Start = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Python processes that say when they are ready."""
    processes = []

    def start(program: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def follow(follower: TlsFollower, process: subprocess.Popen[str]) -> None:
    follower.follow(process.pid, int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19]))


def words(follower: TlsFollower, process: subprocess.Popen[str], expected: str) -> None:
    eventually(lambda: follower.words(process.pid).startswith(expected), f"{expected!r} is said")


def test_a_library_is_attached_to_once(follower: TlsFollower, programs: Programs, start: Start) -> None:
    for _ in range(3):
        process = start(LOADED)
        follow(follower, process)
        words(follower, process, "OpenSSL (libssl.so")
    assert len(programs.attached) == 1
    assert programs.loaded == 1


def test_nothing_is_compiled_where_there_is_no_tls(follower: TlsFollower, programs: Programs, start: Start) -> None:
    process = start(WAIT)
    follow(follower, process)
    words(follower, process, "none found")
    assert programs.loaded == 0


def test_a_library_that_is_loaded_later_is_found(follower: TlsFollower, programs: Programs, start: Start) -> None:
    process = start(LATER)
    assert process.stdin is not None
    follow(follower, process)
    words(follower, process, "none found")
    process.stdin.write("\n")
    process.stdin.flush()
    words(follower, process, "OpenSSL (libssl.so")


def test_a_library_of_another_name_is_told(follower: TlsFollower, start: Start) -> None:
    process = start(f"import ssl, psycopg; {WAIT}")
    follow(follower, process)
    words(follower, process, "OpenSSL (libssl")
    assert ", " in follower.words(process.pid)


def test_the_end_detaches_from_everything(programs: Programs, start: Start) -> None:
    follower = TlsFollower(programs.load)
    process = start(LOADED)
    follow(follower, process)
    words(follower, process, "OpenSSL")
    follower.close()
    assert programs.closed


def test_while_it_pauses_nothing_is_attached_to(follower: TlsFollower, programs: Programs, start: Start) -> None:
    process = start(LOADED)
    follow(follower, process)
    words(follower, process, "OpenSSL")
    follower.pause()
    [(_, events)] = programs.attached
    eventually(lambda: not os.path.exists(f"/proc/self/fd/{events[0]}"), "it is detached")
    words(follower, process, "not looked at: capture is off")
    late = start(LOADED)
    follow(follower, late)
    follower.resume()
    words(follower, process, "OpenSSL")
    words(follower, late, "OpenSSL")
    assert len(programs.attached) == 2


def test_a_library_that_nobody_uses_is_detached_from(
    follower: TlsFollower, programs: Programs, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower_module, "_UNUSED_S", 0.3)
    process = start(LOADED)
    follow(follower, process)
    words(follower, process, "OpenSSL")
    follower.forget(process.pid)
    assert follower.words(process.pid) == ""
    (_, events) = programs.attached[0]
    other = start(WAIT)
    follow(follower, other)  # wakes the follower
    eventually(lambda: not os.path.exists(f"/proc/self/fd/{events[0]}"), "it is detached")
    follow(follower, process)
    words(follower, process, "OpenSSL")
    assert len(programs.attached) == 2


@pytest.mark.parametrize(
    ("refuses", "said"),
    [("load", "(the kernel refuses the program"), ("attach", "(cannot be probed: Operation not supported)")],
)
def test_what_the_kernel_refuses_is_said(refuses: str, said: str, start: Start) -> None:
    programs = Programs(refuses)
    follower = TlsFollower(programs.load)
    try:
        for _ in range(2):
            process = start(LOADED)
            follow(follower, process)
            words(follower, process, "not seen: libssl.so")
            assert said in follower.words(process.pid)
        assert programs.loaded == 1
        assert bool(follower.reason) == (refuses == "load")
    finally:
        follower.close()


def test_a_process_that_has_ended_harms_nobody(follower: TlsFollower, start: Start) -> None:
    process = start(WAIT)
    process.kill()
    process.wait()
    follower.follow(process.pid, 1)
    follower.follow(1 << 30, 1)
    time.sleep(0.1)
    other = start(LOADED)
    follow(follower, other)
    words(follower, other, "OpenSSL")


def test_another_process_of_the_same_pid_is_left_alone(follower: TlsFollower, programs: Programs, start: Start) -> None:
    process, other = start(LOADED), start(LOADED)
    follower.follow(process.pid, 1)  # the one that began at boot has ended
    follow(follower, other)
    words(follower, other, "OpenSSL")
    assert follower.words(process.pid) == "not looked at yet"
    assert len(programs.attached) == 1


def test_whatever_goes_wrong_with_one_process_the_others_are_followed(
    follower: TlsFollower, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    harmful, other = start(WAIT), start(LOADED)
    look_at = follower_module.look_at

    def fail(process: HeldProcess, *arguments: Any) -> Any:
        if process.pid == harmful.pid:
            raise ValueError("what nobody thought of")
        return look_at(process, *arguments)

    monkeypatch.setattr(follower_module, "look_at", fail)
    follow(follower, harmful)
    follow(follower, other)
    words(follower, other, "OpenSSL")
    assert follower.words(harmful.pid).startswith("not seen: the agent failed")


def test_the_end_waits_for_no_compiler(start: Start) -> None:
    at_work, done = threading.Event(), threading.Event()

    class AtWork(Programs):
        def load(self) -> Any:
            at_work.set()
            done.wait()
            return super().load()

    programs = AtWork()
    follower = TlsFollower(programs.load)
    process = start(LOADED)
    follow(follower, process)
    assert at_work.wait(60)
    follower.close()
    assert not programs.attached
    done.set()
    eventually(lambda: programs.closed, "what was loaded meanwhile is let go")
    assert len(programs.attached) <= 1


@root
def test_one_users_libraries_leave_room_for_others(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attachments_module, "_LIBRARIES", 8)
    copies = [Path(shutil.copy(library, tmp_path / f"libssl{n}.so")) for n in range(12)]
    programs = Programs()
    follower = TlsFollower(programs.load)
    try:
        with MappingProcess(copies[:10], HOSTILE) as hostile, MappingProcess(copies[10:], HOSTILE + 1) as another:
            for n in range(10):
                hostile.map(n, place=n)
            another.map(0)
            follower.follow(hostile.pid, hostile.start_time)
            eventually(lambda: "not seen" in follower.words(hostile.pid), "some are refused")
            refused = f"user {HOSTILE} has 4 of the 8 libraries that are followed at once"
            assert refused in follower.words(hostile.pid)
            assert len(programs.attached) == 4
            assert follower.refused == 6
            follower.follow(another.pid, another.start_time)
            eventually(lambda: follower.words(another.pid) == "OpenSSL (libssl10.so)", "another's is followed")
    finally:
        follower.close()


@root
def test_who_takes_too_much_time_waits_and_nobody_else(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower_module, "_USER_AT_ONCE_S", 0.0)
    monkeypatch.setattr(follower_module, "_USER_PART", 1e-6)
    monkeypatch.setattr(follower_module, "_LOOKS_S", (0.0, 0.1))
    shutil.copy(library, tmp_path / "libssl.so")
    follower = TlsFollower(Programs().load)
    try:
        with (
            MappingProcess([tmp_path / "libssl.so"], HOSTILE) as hostile,
            MappingProcess([tmp_path / "libssl.so"], HOSTILE + 1) as another,
        ):
            hostile.map(0)
            another.map(0)
            follower.follow(hostile.pid, hostile.start_time)
            waits = f"not looked at: the processes of user {HOSTILE} took more than their share of time"
            eventually(lambda: follower.words(hostile.pid) == waits, "it waits")
            follower.follow(another.pid, another.start_time)
            eventually(lambda: follower.words(another.pid) != "not looked at yet", "another is looked at")
    finally:
        follower.close()


def test_a_process_that_runs_another_program_is_looked_at_anew(follower: TlsFollower, start: Start) -> None:
    process = start(f"{WAIT}; import os; os.execv('/bin/sleep', ['sleep', '60'])")
    assert process.stdin is not None
    follow(follower, process)
    words(follower, process, "none found")
    process.stdin.write("\n")
    process.stdin.flush()
    follow(follower, process)
    words(follower, process, "none found")
