"""Memory that whoever is handed its descriptor may read, and that only the agent can write."""

from __future__ import annotations

import fcntl
import mmap
import os

__all__ = ["seal_memory"]

# linux/fcntl.h; Python names this one only since 3.13.
_F_SEAL_FUTURE_WRITE = 0x0010


def seal_memory(name: str, size: int) -> tuple[int, mmap.mmap]:
    """A memfd's descriptor, and the one mapping of it that can write: it was made before the seal. Raises OSError."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE)
        mapped = mmap.mmap(descriptor, size, mmap.MAP_SHARED)
        seals = _F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor, mapped
