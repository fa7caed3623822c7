"""A process that is held by its folder in /proc: whatever is read through it is of this process and of no other."""

from __future__ import annotations

import os
from typing import NamedTuple

__all__ = ["Credentials", "HeldProcess", "read_beginning"]

_READ_MAX = 8 << 20  # bytes of one file of /proc
_PIECE = 1 << 16
_START_TIME = 19  # of the fields behind the name in stat (proc(5))


def read_beginning(name: str, folder: int, most: int) -> bytes:
    """The first bytes of a file of an opened folder of /proc, no more than `most`. Raises OSError."""
    descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        # Piece by piece: with room for 8 MiB, a read of one line would map and unmap so much memory each time.
        found = os.read(descriptor, min(_PIECE, most))
        while len(found) < most and (more := os.read(descriptor, min(_PIECE, most - len(found)))):
            found += more
        return found
    finally:
        os.close(descriptor)


class Credentials(NamedTuple):
    """Who a process is, and who is root for it, as numbers of the agent's own user namespace.

    Attributes:
        user: the real user, who started it.
        effective: the user whose rights it has; another one in a setuid program.
        root: root of its user namespace; None where that has none.
        root_group: likewise.
    """

    user: int
    effective: int
    root: int | None
    root_group: int | None


class HeldProcess:
    """The folder /proc/PID by a descriptor. Once the process has ended all reading fails, also when another process has
    got the pid.

    Args:
        start_time: clock ticks since boot; None holds whichever process has the pid.

    Raises OSError: ProcessLookupError or FileNotFoundError where there is no such process (any more).
    """

    def __init__(self, pid: int, start_time: int | None = None) -> None:
        self.pid = pid
        self._folder = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            began = int(self.read("stat").rpartition(b")")[2].split()[_START_TIME])
            if start_time is not None and began != start_time:
                raise ProcessLookupError(3, f"the process {pid} that began at {start_time} has ended")
        except BaseException:
            self.close()
            raise

    def open(self, name: str | bytes, flags: int) -> int:
        """A descriptor of what is below the folder. Raises OSError."""
        return os.open(name, flags | os.O_CLOEXEC, dir_fd=self._folder)

    def read(self, name: str) -> bytes:
        """The first 8 MiB of a file of the folder. Raises OSError."""
        return read_beginning(name, self._folder, _READ_MAX)

    def credentials(self) -> Credentials:
        """Raises OSError."""
        real = effective = -1
        for line in self.read("status").splitlines():
            if line.startswith(b"Uid:"):
                real, effective = (int(number) for number in line.split()[1:3])
        return Credentials(real, effective, self._root("uid_map"), self._root("gid_map"))

    def _root(self, name: str) -> int | None:
        """What zero in its user namespace is here (user_namespaces(7)): first inside, first outside, how many."""
        for line in self.read(name).splitlines():
            inside, outside, _ = (int(number) for number in line.split())
            if inside == 0 and outside != 0xFFFFFFFF:
                return outside
        return None

    def close(self) -> None:
        os.close(self._folder)

    def __enter__(self) -> HeldProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
