"""The bpf() operations that the agent needs, through libbpf."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import Any, Literal, NamedTuple

from spandial_agent.kernel.linker import btf_of_functions

__all__ = [
    "Map",
    "ProgramInfo",
    "RawTracepointRun",
    "Uprobe",
    "attach_tracepoint",
    "check",
    "freeze",
    "libbpf",
    "load_program",
    "possible_cpus",
    "program_info",
]


class _TestRunOpts(ctypes.Structure):
    """struct bpf_test_run_opts of libbpf's bpf.h."""

    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_void_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    ]


_lib: Any = None


def libbpf() -> Any:
    global _lib
    if _lib is None:
        _lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
    return _lib


def check(result: int, what: str) -> None:
    """libbpf 1.x returns -errno. Raises OSError."""
    if result < 0:
        raise OSError(-result, f"{what}: {os.strerror(-result)}")


def freeze(map_fd: int) -> None:
    """No user-space process may write this map from now on (Linux 5.2, commit 87df15de441b). Raises OSError."""
    check(libbpf().bpf_map_freeze(map_fd), "bpf_map_freeze")


class _LoadOpts(ctypes.Structure):
    """struct bpf_prog_load_opts of libbpf's bpf.h."""

    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("attempts", ctypes.c_int),
        ("expected_attach_type", ctypes.c_uint32),
        ("prog_btf_fd", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
        ("prog_ifindex", ctypes.c_uint32),
        ("kern_version", ctypes.c_uint32),
        ("attach_btf_id", ctypes.c_uint32),
        ("attach_prog_fd", ctypes.c_uint32),
        ("attach_btf_obj_fd", ctypes.c_uint32),
        ("fd_array", ctypes.c_void_p),
        ("func_info", ctypes.c_void_p),
        ("func_info_cnt", ctypes.c_uint32),
        ("func_info_rec_size", ctypes.c_uint32),
        ("line_info", ctypes.c_void_p),
        ("line_info_cnt", ctypes.c_uint32),
        ("line_info_rec_size", ctypes.c_uint32),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_void_p),
    ]


Uprobe = Literal["one", "many"]

_PROG_TYPE_KPROBE, _PROG_TYPE_RAW_TRACEPOINT, _PROG_TYPE_TRACING = 2, 17, 26
_ATTACH_TRACE_RAW_TP, _ATTACH_TRACE_UPROBE_MULTI = 23, 48
_LOG_SIZE = 1 << 24


def load_program(
    name: str, code: bytes, functions: tuple[int, ...], typed_tracepoint: str | None, uprobe: Uprobe | None = None
) -> int:
    """Load a raw tracepoint program, or one with typed arguments if its tracepoint is given, or one for uprobes: for
    "one" each time that it is attached, or for "many"; its descriptor.

    Raises OSError, whose text is what the verifier said.
    """
    lib = libbpf()
    btf, where = btf_of_functions(functions)
    btf_fd = lib.bpf_btf_load(btf, ctypes.c_size_t(len(btf)), None)
    check(btf_fd, "bpf_btf_load")
    try:
        records = ctypes.create_string_buffer(where, len(where))
        opts = _LoadOpts(
            sz=ctypes.sizeof(_LoadOpts),
            prog_btf_fd=btf_fd,
            func_info=ctypes.cast(records, ctypes.c_void_p),
            func_info_cnt=len(functions),
            func_info_rec_size=8,
        )
        kind = _PROG_TYPE_KPROBE if uprobe else _PROG_TYPE_RAW_TRACEPOINT
        if uprobe == "many":  # kernels before Linux 6.6 do not look at it
            opts.expected_attach_type = _ATTACH_TRACE_UPROBE_MULTI
        if typed_tracepoint is not None:
            kind = _PROG_TYPE_TRACING
            opts.expected_attach_type = _ATTACH_TRACE_RAW_TP
            found = lib.libbpf_find_vmlinux_btf_id(typed_tracepoint.encode(), _ATTACH_TRACE_RAW_TP)
            check(found, f"the tracepoint {typed_tracepoint}")
            opts.attach_btf_id = found
        load = (kind, name.encode(), b"Dual BSD/GPL", code, ctypes.c_size_t(len(code) // 8), ctypes.byref(opts))
        descriptor = int(lib.bpf_prog_load(*load))
        if descriptor < 0:
            # Once more, for the verifier's words.
            log = ctypes.create_string_buffer(_LOG_SIZE)
            opts.log_level, opts.log_size, opts.log_buf = 1, _LOG_SIZE, ctypes.cast(log, ctypes.c_void_p)
            descriptor = int(lib.bpf_prog_load(*load))
            if descriptor < 0:
                raise OSError(-descriptor, log.value.decode(errors="replace").strip() or os.strerror(-descriptor))
        return descriptor
    finally:
        os.close(btf_fd)


def attach_tracepoint(program_fd: int, raw_tracepoint: str | None) -> int:
    """Attach to a raw tracepoint, or to that of a typed program; the link's descriptor, which detaches when closed.
    Raises OSError."""
    name = raw_tracepoint.encode() if raw_tracepoint is not None else None
    descriptor = int(libbpf().bpf_raw_tracepoint_open(name, program_fd))
    check(descriptor, "bpf_raw_tracepoint_open")
    return descriptor


class RawTracepointRun:
    """A raw tracepoint program that is run by hand with up to twelve arguments, and attached to nothing."""

    def __init__(self, program_fd: int) -> None:
        self._fd = program_fd
        self._args = (ctypes.c_uint64 * 12)()
        self._opts = _TestRunOpts(
            sz=ctypes.sizeof(_TestRunOpts),
            ctx_in=ctypes.cast(self._args, ctypes.c_void_p),
            ctx_size_in=ctypes.sizeof(self._args),
        )
        self._run = libbpf().bpf_prog_test_run_opts

    def __call__(self, *args: int) -> int:
        """Run once (BPF_PROG_TEST_RUN, Linux 5.10 for this type); the program's return value. Raises OSError."""
        self._args[: len(args)] = list(args)
        check(self._run(self._fd, ctypes.byref(self._opts)), "bpf_prog_test_run")
        return int(self._opts.retval)


def possible_cpus() -> int:
    """How many values a per-CPU map holds for a key."""
    with open("/sys/devices/system/cpu/possible") as file:
        return int(file.read().strip().replace(",", "-").split("-")[-1]) + 1


class Map:
    """A BPF map by its descriptor. A key that is a number is a u32.

    Args:
        fd: the map's descriptor.
        value_size: bytes of one value.
        per_cpu: whether a key has a value for each possible CPU.

    Attributes:
        size: bytes of a key's values, of all CPUs.
        stride: bytes from one CPU's value to the next.
    """

    def __init__(self, fd: int, value_size: int, *, per_cpu: bool = False) -> None:
        self.fd = fd
        self.stride = (value_size + 7) // 8 * 8
        self._copies = possible_cpus() if per_cpu else 1
        self.size = self.stride * self._copies if per_cpu else value_size

    def __setitem__(self, key: int | bytes, value: bytes) -> None:
        if self._copies > 1:
            value = value.ljust(self.stride, b"\0") * self._copies
        buffer = ctypes.create_string_buffer(value, self.size)
        check(libbpf().bpf_map_update_elem(self.fd, _key(key), buffer, ctypes.c_uint64(0)), f"update of key {key!r}")

    def __getitem__(self, key: int | bytes) -> list[bytes]:
        """The key's values, one for each possible CPU (one if the map is not per CPU). Raises KeyError, OSError."""
        buffer = ctypes.create_string_buffer(self.size)
        result = libbpf().bpf_map_lookup_elem(self.fd, _key(key), buffer)
        if result == -errno.ENOENT:
            raise KeyError(key)
        check(result, f"look-up of key {key!r}")
        return [buffer.raw[at : at + self.stride] for at in range(0, self.size, self.stride)]

    def first(self, count: int) -> bytes:
        """The values of an array's first keys, one after the other, each as long as `size` (Linux 5.6; 5.13 where it is
        per CPU, commit f008d732ab18). Raises OSError."""
        keys, buffer = (ctypes.c_uint32 * count)(), ctypes.create_string_buffer(self.size * count)
        after, found = ctypes.c_uint32(), ctypes.c_uint32(count)
        batch = libbpf().bpf_map_lookup_batch
        result = batch(self.fd, None, ctypes.byref(after), keys, buffer, ctypes.byref(found), None)
        if result != -errno.ENOENT:  # there were no more
            check(result, "bpf_map_lookup_batch")
        return buffer.raw

    def pop(self, key: int | bytes) -> None:
        """Delete a key, if it is there."""
        result = libbpf().bpf_map_delete_elem(self.fd, _key(key))
        if result != -errno.ENOENT:
            check(result, f"deletion of key {key!r}")


def _key(key: int | bytes) -> Any:
    if isinstance(key, bytes):
        return key
    return ctypes.byref(ctypes.c_uint32(key))


class ProgramInfo(NamedTuple):
    """What the kernel knows of a loaded program; run time and count need `kernel.bpf_stats_enabled`."""

    run_time_ns: int
    run_count: int
    recursion_misses: int
    verified_instructions: int


# struct bpf_prog_info of include/uapi/linux/bpf.h: run_time_ns begins at 192.
_INFO_SIZE = 232
_INFO_RUN_TIME = 192


def program_info(program_fd: int) -> ProgramInfo:
    """Raises OSError."""
    buffer = ctypes.create_string_buffer(_INFO_SIZE)
    size = ctypes.c_uint32(_INFO_SIZE)
    check(libbpf().bpf_obj_get_info_by_fd(program_fd, buffer, ctypes.byref(size)), "bpf_obj_get_info_by_fd")
    return ProgramInfo(*struct.unpack_from("=QQQI", buffer.raw, _INFO_RUN_TIME))
