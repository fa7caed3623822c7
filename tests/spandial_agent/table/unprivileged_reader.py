"""What a process without any privilege can do with the rate table's descriptor: read it, and nothing else.

As a script it takes the descriptor's number, drops to nobody, tries everything, and prints a `Report` as JSON. Only the
standard library: after the drop, nothing else may be readable.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

__all__ = ["Report", "run_as_nobody"]

_NOBODY = 65534
_EVIL = b"\xff" * 8
_BPF = {"x86_64": 321, "aarch64": 280}[platform.machine()]
_BPF_MAP_UPDATE_ELEM, _BPF_MAP_DELETE_ELEM = 2, 3
_PR_SET_DUMPABLE = 4
_F_SEAL_GROW = 0x0004
_FALLOC_FL_KEEP_SIZE, _FALLOC_FL_PUNCH_HOLE = 1, 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]


class Report(NamedTuple):
    """What came of it.

    Attributes:
        uid: whom the process had become.
        capabilities: its effective set.
        first: the table's first eight bytes as it read them before the attempts, and after, in hexadecimal.
        failures: why each attempt to change the table failed, as an errno's name; None for one that succeeded.
    """

    uid: int
    capabilities: int
    first: tuple[str, str]
    failures: dict[str, str | None]


def run_as_nobody(descriptor: int) -> Report:
    """Run this file as a process of its own that inherits the descriptor."""
    done = subprocess.run(
        [sys.executable, "-S", __file__, str(descriptor)], pass_fds=[descriptor], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    return Report(**{**said, "first": tuple(said["first"])})


def _drop_privileges() -> None:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    # A change of uid hides /proc/self from its owner; an application that was started as nobody has it.
    _check(_libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0))


def _effective_capabilities() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1], 16) for line in status if line.startswith("CapEff:"))


def _check(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class _Table:
    """The attempts. Each raises OSError, or has changed the table."""

    def __init__(self, descriptor: int) -> None:
        self._fd = descriptor
        address = _libc.mmap(None, mmap.PAGESIZE, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
        if address == ctypes.c_void_p(-1).value:
            _check(-1)
        self._address = address

    def first(self) -> str:
        return ctypes.string_at(self._address, 8).hex()

    def map_for_writing(self) -> None:
        self._map_for_writing(self._fd)

    def make_the_mapping_writable(self) -> None:
        _check(_libc.mprotect(self._address, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE))
        ctypes.memmove(self._address, _EVIL, 8)

    def write_through_proc_mem(self) -> None:
        memory = os.open("/proc/self/mem", os.O_RDWR)
        os.pwrite(memory, _EVIL, self._address)

    def discard_the_mappings_pages(self) -> None:
        _check(_libc.madvise(self._address, mmap.PAGESIZE, 9))  # MADV_REMOVE

    def write(self) -> None:
        os.write(self._fd, _EVIL)

    def pwrite(self) -> None:
        os.pwrite(self._fd, _EVIL, 0)

    def truncate(self) -> None:
        os.ftruncate(self._fd, 0)

    def extend(self) -> None:
        os.ftruncate(self._fd, 1 << 30)

    def punch_a_hole(self) -> None:
        mode = _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE
        _check(_libc.fallocate(self._fd, mode, 0, mmap.PAGESIZE))

    def add_a_seal(self) -> None:
        fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, _F_SEAL_GROW)

    def reopen_and_write(self) -> None:
        os.pwrite(self._reopened(), _EVIL, 0)

    def reopen_and_map(self) -> None:
        self._map_for_writing(self._reopened())

    def reopen_and_truncate(self) -> None:
        os.close(os.open(f"/proc/self/fd/{self._fd}", os.O_RDWR | os.O_TRUNC))

    def update_through_bpf(self) -> None:
        self._bpf(_BPF_MAP_UPDATE_ELEM)

    def delete_through_bpf(self) -> None:
        self._bpf(_BPF_MAP_DELETE_ELEM)

    def _reopened(self) -> int:
        return os.open(f"/proc/self/fd/{self._fd}", os.O_RDWR)

    def _map_for_writing(self, descriptor: int) -> None:
        with mmap.mmap(descriptor, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE) as mapped:
            mapped[:8] = _EVIL

    def _bpf(self, command: int) -> None:
        key, value = ctypes.c_uint32(0), ctypes.create_string_buffer(_EVIL * 8, 64)
        # union bpf_attr: map_fd, key, value, flags.
        attributes = (ctypes.c_uint64 * 4)(self._fd, ctypes.addressof(key), ctypes.addressof(value), 0)
        _check(_libc.syscall(_BPF, command, ctypes.byref(attributes), ctypes.sizeof(attributes)))


def _attempts(table: _Table) -> dict[str, Callable[[], None]]:
    return {name: getattr(table, name) for name in vars(_Table) if not name.startswith("_") and name != "first"}


def _failure(attempt: Callable[[], None]) -> str | None:
    try:
        attempt()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return None


def main() -> None:
    # A table that could be shortened after all would end this process by a signal: it must not leave a core behind.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _drop_privileges()
    table = _Table(int(sys.argv[1]))
    before = table.first()
    failures = {name: _failure(attempt) for name, attempt in _attempts(table).items()}
    report = Report(os.geteuid(), _effective_capabilities(), (before, table.first()), failures)
    print(json.dumps(report._asdict()))


if __name__ == "__main__":
    main()
