"""Attach loaded programs to functions of a file: uprobes, as perf events (perf_event_open(2))."""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import struct
from pathlib import Path

__all__ = ["attach_uprobe"]

_PMU = Path("/sys/bus/event_source/devices/uprobe")
_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}
_FLAG_CLOEXEC = 8
# _IOW('$', 8, __u32), _IO('$', 0): include/uapi/linux/perf_event.h
_IOC_SET_BPF, _IOC_ENABLE = 0x40042408, 0x2400
# struct perf_event_attr up to config2: type, size, config, sample_period, sample_type, read_format, flags,
# wakeup_events, bp_type, config1 (where the path is), config2 (the offset)
_ATTRIBUTES = struct.Struct("=IIQQQQQIIQQ")
_ATTRIBUTES_SIZE = 112  # PERF_ATTR_SIZE_VER5


def attach_uprobe(program: int, path: str, offset: int, *, at_return: bool = False) -> int:
    """Run a program where a function of a file begins, or where it returns, in every process that has the file mapped
    now or later; a descriptor, which detaches when closed.

    Args:
        program: descriptor of a program that was loaded for uprobes.
        path: the file, which the kernel goes on to know by its inode.
        offset: bytes from the file's beginning to the function's first instruction.

    Raises OSError, also where the kernel has no uprobes (Linux 4.17, commit 33ea4b24277b).
    """
    kind = int((_PMU / "type").read_text())
    # "config:0"
    bit = int((_PMU / "format/retprobe").read_text().strip().removeprefix("config:"))
    where = ctypes.create_string_buffer(os.fsencode(path))
    attributes = ctypes.create_string_buffer(
        _ATTRIBUTES.pack(kind, _ATTRIBUTES_SIZE, at_return << bit, 0, 0, 0, 0, 0, 0, ctypes.addressof(where), offset),
        _ATTRIBUTES_SIZE,
    )
    libc = ctypes.CDLL(None, use_errno=True)
    # Of all processes; a processor must be named, and the program runs on all (kernel/trace/trace_uprobe.c).
    event = int(
        libc.syscall(_PERF_EVENT_OPEN[platform.machine()], attributes, -1, 0, -1, ctypes.c_ulong(_FLAG_CLOEXEC))
    )
    if event < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"perf_event_open: {os.strerror(number)}", path)
    try:
        fcntl.ioctl(event, _IOC_SET_BPF, program)
        fcntl.ioctl(event, _IOC_ENABLE, 0)
    except OSError:
        os.close(event)
        raise
    return event
