"""The follower looks at real processes; what it loads and attaches is a test's."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from spandial_agent.capture import follower as follower_module
from spandial_agent.capture.follower import TlsFollower
from spandial_agent.errors import KernelUnavailable
from tests.agent_process import eventually

WAIT = "import sys; print('ready', flush=True); sys.stdin.readline()"
LOADED = f"import ssl; {WAIT}"
LATER = f"{WAIT}; import ssl; print('loaded', flush=True); sys.stdin.readline()"


class Programs:
    """Stands in for kernel.tls.TlsCapture: an attachment is a pipe's end."""

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
        self.attached.append((os.path.basename(os.readlink(path)), events.copy()))
        return events

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


def words(follower: TlsFollower, process: subprocess.Popen[str], expected: str) -> None:
    eventually(lambda: follower.words(process.pid).startswith(expected), f"{expected!r} is said")


def test_a_library_is_attached_to_once(follower: TlsFollower, programs: Programs, start: Start) -> None:
    for _ in range(3):
        process = start(LOADED)
        follower.follow(process.pid)
        words(follower, process, "OpenSSL (libssl.so")
    assert len(programs.attached) == 1
    assert programs.loaded == 1


def test_nothing_is_compiled_where_there_is_no_tls(follower: TlsFollower, programs: Programs, start: Start) -> None:
    process = start(WAIT)
    follower.follow(process.pid)
    words(follower, process, "none found")
    assert programs.loaded == 0


def test_a_library_that_is_loaded_later_is_found(follower: TlsFollower, programs: Programs, start: Start) -> None:
    process = start(LATER)
    assert process.stdin is not None
    follower.follow(process.pid)
    words(follower, process, "none found")
    process.stdin.write("\n")
    process.stdin.flush()
    words(follower, process, "OpenSSL (libssl.so")


def test_a_library_of_another_name_is_told(follower: TlsFollower, start: Start) -> None:
    process = start(f"import ssl, psycopg; {WAIT}")
    follower.follow(process.pid)
    words(follower, process, "OpenSSL (libssl")
    assert ", " in follower.words(process.pid)


def test_the_end_detaches_from_everything(programs: Programs, start: Start) -> None:
    follower = TlsFollower(programs.load)
    process = start(LOADED)
    follower.follow(process.pid)
    words(follower, process, "OpenSSL")
    follower.close()
    ((_, events),) = programs.attached
    assert programs.closed
    for event in events:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(event)


def test_a_library_that_nobody_uses_is_detached_from(
    follower: TlsFollower, programs: Programs, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower_module, "_UNUSED_S", 0.3)
    process = start(LOADED)
    follower.follow(process.pid)
    words(follower, process, "OpenSSL")
    follower.forget(process.pid)
    assert follower.words(process.pid) == ""
    (_, events) = programs.attached[0]
    other = start(WAIT)
    follower.follow(other.pid)  # wakes the follower
    eventually(lambda: not os.path.exists(f"/proc/self/fd/{events[0]}"), "it is detached")
    follower.follow(process.pid)
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
            follower.follow(process.pid)
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
    follower.follow(process.pid)
    follower.follow(1 << 30)
    time.sleep(0.1)
    other = start(LOADED)
    follower.follow(other.pid)
    words(follower, other, "OpenSSL")


def test_a_process_that_runs_another_program_is_looked_at_anew(follower: TlsFollower, start: Start) -> None:
    process = start(f"{WAIT}; import os; os.execv('/bin/sleep', ['sleep', '60'])")
    assert process.stdin is not None
    follower.follow(process.pid)
    words(follower, process, "none found")
    process.stdin.write("\n")
    process.stdin.flush()
    follower.follow(process.pid)
    words(follower, process, "none found")


def test_a_library_that_an_ended_process_led_to_is_reached_by_the_next(
    follower: TlsFollower, programs: Programs, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = start(LOADED), start(LOADED)
    with monkeypatch.context() as patch:
        patch.setattr(programs, "attach", lambda *_: (_ for _ in ()).throw(FileNotFoundError(2, "No such file")))
        follower.follow(first.pid)
        words(follower, first, "not seen: libssl.so")
    follower.follow(second.pid)
    words(follower, second, "OpenSSL")


def test_a_process_that_cannot_be_looked_at_ends_nobody_elses_tls(
    follower: TlsFollower, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd, other = start(LOADED), start(LOADED)
    look_at = follower_module.look_at

    def look(pid: int) -> follower_module.Seen:
        if pid == odd.pid:
            raise UnicodeEncodeError("utf-8", "libssl\udcff.so", 6, 7, "surrogates not allowed")
        return look_at(pid)

    monkeypatch.setattr(follower_module, "look_at", look)
    follower.follow(odd.pid)
    follower.follow(other.pid)
    words(follower, other, "OpenSSL")
    assert follower.words(odd.pid).startswith("not seen: the process could not be looked at")
    assert follower.thread.trouble == ""
