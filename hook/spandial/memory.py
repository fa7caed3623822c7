"""Memory that an agent shares, mapped only if it cannot be taken away: reading what is gone would kill the application.

What an agent shares are memfds whose seals forbid what could do so (memfd_create(2), fcntl(2)). An agent of before
shares its table as a frozen BPF map, which has one size for ever.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import stat

__all__ = ["Refused", "map_memory"]

# linux/fcntl.h; Python does not name all of them everywhere.
_F_GET_SEALS = 1034
_F_SEAL_SHRINK, _F_SEAL_GROW, _F_SEAL_WRITE, _F_SEAL_FUTURE_WRITE = 0x02, 0x04, 0x08, 0x10
_ONE_SIZE = _F_SEAL_SHRINK | _F_SEAL_GROW
_FINISHED = _F_SEAL_WRITE | _F_SEAL_FUTURE_WRITE
_BPF_MAP = "anon_inode:bpf-map"
_FROZEN_ARRAY = {"map_type": "2", "frozen": "1"}  # BPF_MAP_TYPE_ARRAY


class Refused(Exception):
    """The agent's answer is none that this process can obey, or a refusal; says why."""


def map_memory(
    descriptor: int, size: int, what: str, *, writable: bool = False, may_be_map: bool = False
) -> memoryview:
    """Map what an agent shares, for as long as the view lives. Raises Refused, OSError.

    Args:
        size: bytes that are needed.
        what: is shared, in words.
        writable: this process writes it, too; else nobody may but who made it.
        may_be_map: a frozen BPF map will do.
    """
    try:
        seals = fcntl.fcntl(descriptor, _F_GET_SEALS)
    except OSError:
        if not (may_be_map and _is_frozen_map(descriptor)):
            raise Refused(f"the {what} is no sealed memory") from None
    else:
        # Huge pages may be found to be missing when they are read.
        if os.fstatvfs(descriptor).f_bsize != mmap.PAGESIZE or not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Refused(f"the {what} is no memory of plain pages")
        if seals & _ONE_SIZE != _ONE_SIZE or not (writable or seals & _FINISHED):
            raise Refused(f"the {what} is not sealed (its seals are {seals:#x}): others could change or shorten it")
        # Only now: before the seal, its size said nothing.
        if (length := os.fstat(descriptor).st_size) < size:
            raise Refused(f"the {what} is {length} bytes long, {size} are needed")
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    return memoryview(mmap.mmap(descriptor, size, flags=mmap.MAP_SHARED, prot=protection))


def _is_frozen_map(descriptor: int) -> bool:
    """Whether it is a BPF array that no process can write any more."""
    try:
        if os.readlink(f"/proc/self/fd/{descriptor}") != _BPF_MAP:
            return False
        with open(f"/proc/self/fdinfo/{descriptor}") as file:
            said = dict(line.split(":", 1) for line in file if ":" in line)
    except OSError:
        return False
    return all(said.get(name, "").strip() == value for name, value in _FROZEN_ARRAY.items())
