"""BPF links that end without anybody waiting: pinned in a BPF file system that is mounted nowhere.

A link of uprobes ends when the last reference to it is given up, and the kernel then waits until no processor runs its
program any more: tens of milliseconds each, one after the other, in whoever closes the descriptor; also in a process
that was killed, which keeps its locks and its ports meanwhile. The reference that a pin holds is given up by a worker
of the kernel instead (bpf_link_put), many at a time. With the last descriptor of the mount, closed by whatever ends the
process, all pins are gone.
"""

from __future__ import annotations

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from itertools import count

from spandial_agent.kernel.libbpf import check, libbpf

__all__ = ["Links"]

# The same on all architectures (Linux 5.2).
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_CLOEXEC = 1  # FSOPEN_CLOEXEC, FSMOUNT_CLOEXEC
_CMD_CREATE = 6  # FSCONFIG_CMD_CREATE
_CLOSERS = 64  # threads: the kernel waits once for all that wait together


class Links:
    """Holds links by a number each. Where there may be no such file system (it takes CAP_SYS_ADMIN) it holds their
    descriptors, and to end them takes longer."""

    def __init__(self) -> None:
        self._numbers = count()
        self._descriptors: dict[int, int] = {}
        self._pinned: set[int] = set()
        try:
            self._folder = _mount_nowhere()
        except OSError:
            self._folder = -1

    def hold(self, descriptor: int) -> int:
        """Take over a link; the number that ends it."""
        number = next(self._numbers)
        if self._folder >= 0:
            path = os.fsencode(f"/proc/self/fd/{self._folder}/{number}")
            try:
                check(libbpf().bpf_obj_pin(descriptor, path), "bpf_obj_pin")
            except OSError:  # it is a perf event, and no link
                pass
            else:
                self._pinned.add(number)
                os.close(descriptor)
                return number
        self._descriptors[number] = descriptor
        return number

    def end(self, *numbers: int) -> None:
        """Detach; a pinned one within a moment, the others at once."""
        descriptors = []
        for number in numbers:
            if number in self._pinned:
                self._pinned.discard(number)
                os.unlink(str(number), dir_fd=self._folder)
            elif number in self._descriptors:
                descriptors.append(self._descriptors.pop(number))
        if descriptors:
            with ThreadPoolExecutor(min(_CLOSERS, len(descriptors))) as closers:
                list(closers.map(os.close, descriptors))

    def close(self) -> None:
        """Detach all."""
        self.end(*self._pinned, *self._descriptors)
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1


def _mount_nowhere() -> int:
    """A descriptor of the root of a new BPF file system, with whose end it ends. Raises OSError."""
    context = _syscall(_FSOPEN, b"bpf", _CLOEXEC)
    try:
        _syscall(_FSCONFIG, context, _CMD_CREATE, None, None, 0)
        mount = _syscall(_FSMOUNT, context, _CLOEXEC, 0)
    finally:
        os.close(context)
    try:
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)
    finally:
        os.close(mount)


def _syscall(number: int, *arguments: int | bytes | None) -> int:
    result = int(ctypes.CDLL(None, use_errno=True).syscall(number, *arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
