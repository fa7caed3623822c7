"""Processes as /proc shows them."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spandial.labels import Labels
from spandial_agent.processes import proc as processes
from spandial_agent.processes.proc import (
    Process,
    Traits,
    all_pids,
    ancestors,
    read_process,
    read_traits,
    same_process,
    socket_inodes,
    thread_group,
)
from tests.agent_process import eventually

_NOBODY = 65534
_PR_SET_NAME = 15


@contextmanager
def sleeping(environ: Mapping[bytes, bytes] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process of this environment."""
    child = subprocess.Popen(["sleep", "60"], env={b"A": b"B", **(environ or {})})
    shown = Path(f"/proc/{child.pid}/environ")
    try:
        # An exec gives a process its new name first, and for a moment no environment at all.
        eventually(lambda: read(child.pid).name == "sleep" and shown.read_bytes(), "the child sleeps")
        yield child
    finally:
        child.kill()
        child.wait()


def read(pid: int) -> Process:
    process = read_process(pid)
    assert process is not None
    return process


def test_a_process_is_read_with_its_labels() -> None:
    attributes = b"service.version=v1,deployment.environment.name=gray%20zone,ignored"
    with sleeping({b"OTEL_SERVICE_NAME": b"checkout", b"OTEL_RESOURCE_ATTRIBUTES": attributes}) as child:
        process = read(child.pid)
    assert (process.pid, process.name) == (child.pid, "sleep")
    assert process.labels == Labels("checkout", "v1", "gray zone")


def test_pid_and_start_time_tell_processes_apart() -> None:
    with sleeping() as one:
        first = read(one.pid)
        time.sleep(0.02)
        with sleeping() as other:
            assert read(one.pid) == first
            assert read(other.pid).start_time > first.start_time


def test_an_environment_that_is_no_text_is_read_all_the_same() -> None:
    with sleeping({b"OTEL_SERVICE_NAME": b"caf\xe9", b"\xff": b"\xff"}) as child:
        assert read(child.pid).labels.service == "caf\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("name", ["a b c", "a) S 1 (b", "((", "))", ") Z 0", "(sd-pam)"])
def test_a_name_may_hold_spaces_and_parentheses(name: str) -> None:
    rename = f"import ctypes; ctypes.CDLL(None).prctl({_PR_SET_NAME}, {name.encode()!r}, 0, 0, 0)"
    wait = "; print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-S", "-c", rename + wait], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        process = read(child.pid)
        child.communicate(b"\n")
    assert process.name == name
    assert process.start_time > 0


def test_a_process_that_has_ended_and_is_not_waited_for_is_none() -> None:
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert child.pid in set(all_pids())
    assert read_process(child.pid) is None
    child.wait()


def test_a_process_that_is_gone_is_none() -> None:
    with sleeping() as child:
        pid = child.pid
    assert read_process(pid) is None
    assert read_process(1 << 30) is None


def test_all_processes_are_listed() -> None:
    with sleeping() as child:
        found = list(all_pids())
    assert {os.getpid(), child.pid, 1} <= set(found)


def _read_as_nobody(pid: int, said: Connection) -> None:
    os.setgroups([])
    os.setresgid(_NOBODY, _NOBODY, _NOBODY)
    os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    said.send(read_process(pid))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_process_whose_environment_may_not_be_read_is_one_without_labels() -> None:
    fork = multiprocessing.get_context("fork")
    with sleeping({b"OTEL_SERVICE_NAME": b"checkout"}) as child:
        told, said = fork.Pipe(duplex=False)
        reader = fork.Process(target=_read_as_nobody, args=(child.pid, said))
        reader.start()
        assert told.recv() == read(child.pid)._replace(labels=Labels(), image=0)
        reader.join()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(environ=st.binary(max_size=200), name=st.binary(max_size=15))
def test_no_environment_or_name_makes_reading_fail(tmp_path: Path, environ: bytes, name: bytes) -> None:
    folder = tmp_path / "7"
    folder.mkdir(exist_ok=True)
    (folder / "environ").write_bytes(b"OTEL_SERVICE_NAME=a\0OTEL_RESOURCE_ATTRIBUTES=" + environ)
    (folder / "stat").write_bytes(b"7 (" + name + b") S " + b"1 " * 18 + b"99 " + b"0 " * 30 + b"\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "_PROC", tmp_path)
        process = read(7)
    assert process.start_time == 99
    assert process.labels.service == "a" or b"OTEL_SERVICE_NAME" in environ


def test_a_stat_that_is_read_while_its_process_goes_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "7"
    folder.mkdir()
    (folder / "environ").write_bytes(b"")
    (folder / "stat").write_bytes(b"7 (a) X 0 0")
    monkeypatch.setattr(processes, "_PROC", tmp_path)
    assert read_process(7) is None


def test_the_image_is_another_after_an_exec_and_the_same_after_a_fork() -> None:
    own = read(os.getpid()).image
    child = os.fork()
    if not child:
        time.sleep(60)
    try:
        assert read(child).image == own != 0
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    with sleeping() as one, sleeping() as other:
        assert len({own, read(one.pid).image, read(other.pid).image}) == 3


def test_ancestors_are_the_parent_and_those_before_it() -> None:
    with sleeping() as child:
        assert read(child.pid).parent_pid == os.getpid()
        found = list(ancestors(child.pid))
    assert found[:2] == [os.getpid(), os.getppid()]
    assert found[1:] == list(ancestors(os.getpid()))
    assert list(ancestors(1 << 30)) == []


def test_a_thread_belongs_to_its_process() -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    assert thread.native_id is not None
    assert thread_group(thread.native_id) == thread_group(os.getpid()) == os.getpid()
    done.set()
    thread.join()
    assert thread_group(1 << 30) is None


def test_traits_are_read(tmp_path: Path) -> None:
    sleep = shutil.which("sleep")
    assert sleep is not None
    copy = str(shutil.copy(sleep, tmp_path / "a copy"))
    child = subprocess.Popen([copy, "60"], env={b"STAGE": b"gr=ay", b"BAD": b"\xff"})
    try:
        eventually(lambda: read_traits(child.pid).environ, "it runs")
        traits = read_traits(child.pid)
        # A program that has been replaced is called what it was called.
        os.unlink(copy)
        assert read_traits(child.pid).exe == copy
    finally:
        child.kill()
        child.wait()
    assert (traits.exe, traits.cmdline) == (copy, f"{copy} 60")
    assert traits.environ == {"STAGE": "gr=ay", "BAD": "\N{REPLACEMENT CHARACTER}"}
    assert traits.cgroups == read_traits(os.getpid()).cgroups
    assert all(path.startswith("/") for path in traits.cgroups)
    assert traits.ports == frozenset()


def test_only_wanted_traits_are_read() -> None:
    assert read_traits(os.getpid(), ()) == Traits()
    assert read_traits(os.getpid(), {"exe"}) == Traits(exe=os.path.realpath(sys.executable))
    environ = read_traits(os.getpid(), {"environ"}).environ
    assert environ is not None
    assert "PATH" in environ


def test_a_process_that_is_gone_has_no_traits() -> None:
    assert read_traits(1 << 30) == Traits()


def test_of_a_variable_that_comes_twice_the_first_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "environ").write_bytes(b"A=1\0A=2\0no variable\0=\0B=\0")
    monkeypatch.setattr(processes, "_PROC", tmp_path)
    assert read_traits(7).environ == {"A": "1", "": "", "B": ""}


@given(
    hierarchies=st.lists(
        st.tuples(st.integers(0, 20), st.sampled_from(["", "cpu,cpuacct", "name=systemd"]), st.sampled_from("abcd:")),
        max_size=9,
    )
)
def test_a_cgroup_is_a_path_in_each_hierarchy(
    tmp_path_factory: pytest.TempPathFactory, hierarchies: list[tuple[int, str, str]]
) -> None:
    proc = tmp_path_factory.mktemp("proc")
    (proc / "7").mkdir()
    lines = [f"{number}:{controllers}:/{path}/x:y\n" for number, controllers, path in hierarchies]
    (proc / "7" / "cgroup").write_text("".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "_PROC", proc)
        cgroups = read_traits(7).cgroups
    assert set(cgroups) == {f"/{path}/x:y" for _, _, path in hierarchies}
    assert len(cgroups) == len(set(cgroups))


def test_open_sockets_are_known_by_their_inodes() -> None:
    with socket.socket() as one, socket.socket(socket.AF_UNIX) as other:
        inodes = {os.fstat(one.fileno()).st_ino, os.fstat(other.fileno()).st_ino}
        assert inodes <= socket_inodes(os.getpid())
    assert not inodes & socket_inodes(os.getpid())


def test_kernel_threads_are_told_from_processes() -> None:
    assert not read(os.getpid()).kernel_thread
    for pid in all_pids():
        process = read_process(pid)
        if process is not None and process.kernel_thread:
            assert process.labels == Labels()
            assert read_traits(pid, {"exe", "cmdline"}) == Traits()


def test_who_cannot_be_looked_at_is_not_taken_for_somebody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    own = read(os.getpid())

    def none_left(_: int) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(processes, "_folder", none_left)
    assert same_process(own)
