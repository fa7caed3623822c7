"""Which of some processes has a socket open, and how much is read of those that have many descriptors."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from typing import NamedTuple

import pytest

from spandial_agent.processes import holder as holder_module
from spandial_agent.processes.holder import Portions, holder
from spandial_agent.processes.proc import descriptors

# Opens many descriptors, then a socket; says its inode.
_MANY = """
import os, resource, socket, sys
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
for _ in range(int(sys.argv[1])):
    os.dup(0)
made = socket.socket()
print(os.fstat(made.fileno()).st_ino, flush=True)
sys.stdin.read()
"""
_PYTHON = os.path.realpath(sys.executable)  # others may not reach the virtual environment


class Hoarder(NamedTuple):
    pid: int
    inode: int


@pytest.fixture
def hoarder() -> Iterator[Hoarder]:
    """A process with 600 descriptors before its socket, of another user where that may be."""
    user = 64321 if os.geteuid() == 0 else None
    command = [_PYTHON, "-I", "-c", _MANY, "600"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, user=user, stdin=pipe, stdout=pipe, cwd="/", env={}) as process:
        assert process.stdout is not None
        yield Hoarder(process.pid, int(process.stdout.readline()))
        process.communicate()


class Read:
    """How many descriptors have been read, by process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.of: dict[int, int] = {}
        monkeypatch.setattr(holder_module, "descriptors", self._descriptors)

    def _descriptors(self, pid: int) -> Iterator[int]:
        for inode in descriptors(pid):
            self.of[pid] = self.of.get(pid, 0) + 1
            yield inode


def test_it_is_the_process_that_has_it(hoarder: Hoarder) -> None:
    with socket.socket() as own:
        inode = os.fstat(own.fileno()).st_ino
        assert holder([hoarder.pid, os.getpid()], inode) == os.getpid()
        assert holder([hoarder.pid, 1 << 30], inode) is None
    assert holder([1 << 30, os.getpid(), hoarder.pid], hoarder.inode) == hoarder.pid
    assert holder([], 1) is None


def test_of_a_process_so_many_descriptors_are_read_and_no_more(
    hoarder: Hoarder, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Read(monkeypatch)
    monkeypatch.setattr(holder_module, "_OF_A_PROCESS", 100)
    assert holder([hoarder.pid], hoarder.inode) is None
    assert read.of == {hoarder.pid: 100}


def test_of_all_so_many_are_read_and_each_user_has_his_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holder_module, "_OF_A_PROCESS", 100)
    monkeypatch.setattr(holder_module, "_OF_ALL", 500)
    monkeypatch.setattr(holder_module, "_user", lambda pid: 1000 if pid == 9 else 64321)
    read: dict[int, int] = {}

    def endless(pid: int) -> Iterator[int]:
        for number in count():
            read[pid] = read.get(pid, 0) + 1
            yield 7 if (pid, number) == (9, 50) else 0

    monkeypatch.setattr(holder_module, "descriptors", endless)
    assert holder([*range(100, 200), 9], 7) == 9
    assert read == {100: 100, 101: 100, 102: 50, 9: 51}
    assert holder(range(100, 200), 7) is None


def test_what_takes_too_long_is_not_read_to_the_end() -> None:
    clock = count(100.0, holder_module._LOOK_S / 10)
    portions = Portions([1, 2], 1000, 500, lambda: next(clock))
    assert len(list(portions.of(1, range(6)))) == 6
    with pytest.raises(TimeoutError, match="takes too long"):
        list(portions.of(2, range(500)))
