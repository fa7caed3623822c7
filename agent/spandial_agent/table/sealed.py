"""Memory that whoever is handed its descriptor may read, and that only the agent can write."""

from __future__ import annotations

import fcntl
import mmap
import os

__all__ = ["seal_memory"]

# linux/fcntl.h; Python names this one only since 3.13.
_F_SEAL_FUTURE_WRITE = 0x0010
_SEALS = _F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def seal_memory(name: str, size: int) -> tuple[int, mmap.mmap]:
    """A memfd's descriptor for reading, and the one mapping of it that can write: it was made before the seal.

    The descriptor is one of a file opened for reading, the file is its owner's alone to open anew, and whoever opens it
    for writing all the same (a root, in any container) meets the seals.

    Raises OSError, before any descriptor can leave: also where a kernel took the seals and has not set them.
    """
    writable = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(writable, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE)
        os.fchmod(writable, 0o400)
        mapped = mmap.mmap(writable, size, mmap.MAP_SHARED)
        fcntl.fcntl(writable, fcntl.F_ADD_SEALS, _SEALS)
        if fcntl.fcntl(writable, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
            raise OSError(f"the kernel has not sealed the memory of {name}")
        return os.open(f"/proc/self/fd/{writable}", os.O_RDONLY | os.O_CLOEXEC), mapped
    finally:
        os.close(writable)
