"""The clock that leases go by: that of the host, whatever time namespace this process is in."""

from __future__ import annotations

import os
import time

__all__ = ["boottime_ns", "namespace_offset_ns", "parse_offset_ns"]

_OFFSETS = "/proc/self/timens_offsets"
_OWN = "/proc/self/ns/time"
_CHILDRENS = "/proc/self/ns/time_for_children"


def boottime_ns(offset_ns: int) -> int:
    """The host's CLOCK_BOOTTIME, for who is in a time namespace with this offset."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) - offset_ns


def namespace_offset_ns() -> int:
    """By how much CLOCK_BOOTTIME is ahead of the host's here: time_namespaces(7), Linux 5.6. 0 where nobody says.

    The file tells the offsets of the namespace that this process's children are put into. That is another one than its
    own once it has called unshare(CLONE_NEWTIME): it stays where it was, and its children go into the new one (so
    does it itself by execve, on some kernels). Then it is taken to be in the host's: that the one it was in had an
    offset, too, is told nowhere. Ask again in a child.
    """
    try:
        with open(_OFFSETS) as file:
            text = file.read(4096)
        own, childrens = os.stat(_OWN), os.stat(_CHILDRENS)
    except OSError:
        return 0
    return parse_offset_ns(text) if os.path.samestat(own, childrens) else 0


def parse_offset_ns(text: str) -> int:
    """Of `boottime SECONDS NANOSECONDS`; 0 where there is no such line."""
    for line in text.splitlines():
        fields = line.split()
        if fields[:1] == ["boottime"] and len(fields) == 3:
            try:
                return int(fields[1]) * 1_000_000_000 + int(fields[2])
            except ValueError:
                break
    return 0
