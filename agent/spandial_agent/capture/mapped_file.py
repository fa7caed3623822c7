"""A mapped file by one descriptor, by which it is looked at, read and attached to: no path is resolved again."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from typing import NamedTuple

from spandial_agent.processes.held import Credentials, HeldProcess

__all__ = ["Identity", "MappedFile", "Mapping", "Mounts", "Refused", "distrust"]

# Device and inode: as long as a probe is in it, the inode is no other file's.
Identity = tuple[int, int]

# To many, nobody; and whoever has no number in the agent's user namespace is shown as this one, too.
_OVERFLOW_UID = 65534
_REMOTE = ("fuse",)  # a user's own program answers for these, or never does


class Mapping(NamedTuple):
    """A file as a process's `maps` shows it.

    Attributes:
        place: what is to be opened below the process's folder, first what leads to the very file.
        inode: as `maps` has it; 0 is not compared.
    """

    places: tuple[bytes, ...]
    inode: int
    name: str


class Refused(Exception):
    """A file is not looked at; its text says why, for a person."""


class Mounts:
    """Which kind of file system a mount of a process, or of the agent, is of. Read when first asked."""

    def __init__(self, process: HeldProcess) -> None:
        self._process = process
        self._read: list[bytes] = []  # mountinfo of the agent, then of the process: most processes need the first alone

    def kind(self, mount: int) -> str | None:
        """None for a mount that neither of them has, which may be anything. Raises OSError."""
        # A process that has changed its root does not show the mount that this is in.
        for number in range(2):
            if number == len(self._read):
                self._read.append(self._read_next())
            if kind := _kind(self._read[number], mount):
                return kind
        return None

    def _read_next(self) -> bytes:
        if self._read:
            return self._process.read("mountinfo")
        with HeldProcess(os.getpid()) as agent:
            return agent.read("mountinfo")


class MappedFile:
    """A regular file that was opened once.

    Attributes:
        status: what fstat says of it.

    Raises Refused, OSError.
    """

    def __init__(self, process: HeldProcess, mapping: Mapping, mounts: Mounts) -> None:
        # Only a path at first: to open a file may ask a file system that never answers, or have a device do something.
        found, exact = _find(process, mapping)
        try:
            kind = mounts.kind(_mount(found))
            if kind is None or kind.startswith(_REMOTE):
                raise Refused(f"its file system is {kind or 'not known'}")
            status = os.fstat(found)
            # With overlayfs `maps` may show the inode below (Linux 6.8, commit c7adf6e17a58, made it the one above).
            if mapping.inode not in (0, status.st_ino) and not (exact and kind == "overlay"):
                raise Refused("another file has its name")
            if not stat.S_ISREG(status.st_mode):
                raise Refused("it is no regular file")
            # Without waiting for the holder of a lease (fcntl(2)).
            self.descriptor = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        finally:
            os.close(found)
        self.status = os.fstat(self.descriptor)

    @property
    def identity(self) -> Identity:
        return self.status.st_dev, self.status.st_ino

    @property
    def version(self) -> tuple[int, int, int]:
        """What is another one after the file was written. The time of change is one that nobody can set."""
        return self.status.st_size, self.status.st_mtime_ns, self.status.st_ctime_ns

    @property
    def path(self) -> str:
        """Leads to this very file, whatever its name leads to, until it is closed; for this process alone."""
        return f"/proc/self/fd/{self.descriptor}"

    def close(self) -> None:
        os.close(self.descriptor)


def distrust(status: os.stat_result, who: Credentials, trusted: Collection[int]) -> str:
    """Why a file's symbol table is not believed, for a person; empty where it is.

    It is believed if it belongs to somebody who can harm the process anyway: root, root of its user namespace, or the
    user whose rights it has; or to one of those that a setting names. Nobody else may be able to write it.
    """
    owner = status.st_uid
    if owner == _OVERFLOW_UID or owner not in {0, who.root, who.effective, *trusted}:
        return f"it belongs to user {owner}: SPANDIAL_TLS_TRUST_OWNERS may name him"
    if status.st_mode & stat.S_IWOTH:
        return "everybody may write it"
    if status.st_mode & stat.S_IWGRP and status.st_gid not in {0, who.root_group}:
        return f"group {status.st_gid} may write it"
    return ""


def _find(process: HeldProcess, mapping: Mapping) -> tuple[int, bool]:
    """The first place that may be followed, and whether that is the very file. map_files takes CAP_CHECKPOINT_RESTORE
    (Linux 5.9, commit 12886f8ab10c)."""
    for place in mapping.places[:-1]:
        try:
            return process.open(place, os.O_PATH), True
        except PermissionError:
            continue
    return process.open(mapping.places[-1], os.O_PATH), len(mapping.places) == 1


def _mount(descriptor: int) -> int:
    with open(f"/proc/self/fdinfo/{descriptor}", "rb") as info:
        for line in info:
            if line.startswith(b"mnt_id:"):
                return int(line[7:])
    return -1


def _kind(mountinfo: bytes, mount: int) -> str:
    """By the number of the mount (proc(5)): number, parent, ..., a hyphen, type, ...; empty where it is not there."""
    begin = (b"\n" + mountinfo).find(b"\n%d " % mount)
    if begin < 0:
        return ""
    line = mountinfo[begin : mountinfo.find(b"\n", begin)]
    return line.partition(b" - ")[2].split(b" ", 1)[0].decode(errors="replace")
