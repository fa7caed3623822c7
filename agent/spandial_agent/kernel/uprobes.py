"""Attach loaded programs to functions of a file: uprobes, many with one link, or one by one as perf events."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import struct
from collections.abc import Sequence
from pathlib import Path

from spandial_agent.kernel.libbpf import libbpf

__all__ = ["attach_uprobe", "attach_uprobes", "takes_many"]

_BPF = {"x86_64": 321, "aarch64": 280}
_LINK_CREATE = 28
_PERF_EVENT, _TRACE_UPROBE_MULTI = 41, 48  # enum bpf_attach_type
_MULTI_RETURN = 1  # BPF_F_UPROBE_MULTI_RETURN
# link_create of union bpf_attr: prog_fd, target_fd, attach_type, flags, and of uprobe_multi: path, offsets,
# ref_ctr_offsets, cookies, cnt, flags, pid
_LINK = struct.Struct("=IIIIQQQQIII4x")

_PMU = Path("/sys/bus/event_source/devices/uprobe")
_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}
_FLAG_CLOEXEC = 8
# _IOW('$', 8, __u32), _IO('$', 0): include/uapi/linux/perf_event.h
_IOC_SET_BPF, _IOC_ENABLE = 0x40042408, 0x2400
# struct perf_event_attr up to config2: type, size, config, sample_period, sample_type, read_format, flags,
# wakeup_events, bp_type, config1 (where the path is), config2 (the offset)
_ATTRIBUTES = struct.Struct("=IIQQQQQIIQQ")
_ATTRIBUTES_SIZE = 112  # PERF_ATTR_SIZE_VER5


def attach_uprobes(program: int, path: str, offsets: Sequence[int], *, at_return: bool = False) -> int:
    """Run a program where functions of a file begin, or where they return, in every process that has the file mapped
    now or later; the link's descriptor.

    Args:
        program: descriptor of a program that was loaded for many uprobes.
        path: the file, which the kernel goes on to know by its inode.
        offsets: bytes from the file's beginning to each function's first instruction.

    Raises OSError, also where the kernel has no such links (Linux 6.6, commit 89ae89f53d20).
    """
    where = ctypes.create_string_buffer(os.fsencode(path))
    each = (ctypes.c_uint64 * len(offsets))(*offsets)
    flags = _MULTI_RETURN if at_return else 0
    attributes = ctypes.create_string_buffer(
        _LINK.pack(
            *(program, 0, _TRACE_UPROBE_MULTI, 0),
            *(ctypes.addressof(where), ctypes.addressof(each), 0, 0, len(offsets), flags, 0),
        ),
        _LINK.size,
    )
    libc = ctypes.CDLL(None, use_errno=True)
    link = int(libc.syscall(_BPF[platform.machine()], _LINK_CREATE, attributes, ctypes.c_ulong(_LINK.size)))
    if link < 0:
        raise _error("bpf_link_create", path)
    return link


def takes_many(program: int) -> bool:
    """Whether a program that was loaded for many uprobes can have them, found by trying: a folder has no functions, and
    only a kernel that knows such links says so."""
    try:
        os.close(attach_uprobes(program, "/", [0]))
    except OSError as error:
        return error.errno == errno.EBADF
    return False


def attach_uprobe(program: int, path: str, offset: int, *, at_return: bool = False) -> int:
    """As `attach_uprobes`, for one function and a program that was loaded for one, as a perf event
    (perf_event_open(2)); a descriptor of a link, or of the event where the kernel has no links for those (Linux 5.15,
    commit b89fbfbb854c). It detaches when closed.

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
        raise _error("perf_event_open", path)
    try:
        link = int(libbpf().bpf_link_create(program, event, _PERF_EVENT, None))
        if link < 0:
            fcntl.ioctl(event, _IOC_SET_BPF, program)
        fcntl.ioctl(event, _IOC_ENABLE, 0)
    except OSError:
        os.close(event)
        raise
    if link >= 0:
        os.close(event)  # the link keeps it
        return link
    return event


def _error(call: str, path: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}", path)
