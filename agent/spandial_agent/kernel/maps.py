"""Make BPF maps by their definitions, and read ring buffers."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from typing import Any

from spandial_agent.kernel.compiled import MapDefinition
from spandial_agent.kernel.libbpf import Map, check, libbpf
from spandial_agent.kernel.linker import btf_of_bytes

__all__ = ["MAPS_OF_MAPS", "RingBuffer", "create_map", "create_map_of_maps"]

# enum bpf_map_type of include/uapi/linux/bpf.h: storage of sockets, inodes, tasks and cgroups.
_LOCAL_STORAGE = (24, 28, 29, 32)
MAPS_OF_MAPS = (12, 13)  # array and hash
_NAME_MAX = 15  # BPF_OBJ_NAME_LEN, with a zero at its end


class _CreateOpts(ctypes.Structure):
    """struct bpf_map_create_opts of libbpf's bpf.h."""

    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("btf_fd", ctypes.c_uint32),
        ("btf_key_type_id", ctypes.c_uint32),
        ("btf_value_type_id", ctypes.c_uint32),
        ("btf_vmlinux_value_type_id", ctypes.c_uint32),
        ("inner_map_fd", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("map_extra", ctypes.c_uint64),
        ("numa_node", ctypes.c_uint32),
        ("map_ifindex", ctypes.c_uint32),
    ]


def create_map(name: str, definition: MapDefinition, inner: int = 0) -> int:
    """Make a map; its descriptor. Raises OSError.

    Args:
        inner: of a map of maps, the descriptor of a map like those that it will hold.
    """
    lib = libbpf()
    opts = _CreateOpts(sz=ctypes.sizeof(_CreateOpts), map_flags=definition.flags, inner_map_fd=inner)
    btf_fd = -1
    try:
        if definition.kind in _LOCAL_STORAGE:
            # The kernel demands types of key and value (bpf_local_storage_map_check_btf), and looks at sizes only.
            btf, opts.btf_key_type_id, opts.btf_value_type_id = btf_of_bytes(definition.value_size)
            btf_fd = lib.bpf_btf_load(btf, ctypes.c_size_t(len(btf)), None)
            check(btf_fd, "bpf_btf_load")
            opts.btf_fd = btf_fd
        descriptor = int(
            lib.bpf_map_create(
                definition.kind,
                name.encode()[:_NAME_MAX],
                definition.key_size,
                definition.value_size,
                definition.max_entries,
                ctypes.byref(opts),
            )
        )
        check(descriptor, f"bpf_map_create of {name}")
        return descriptor
    finally:
        if btf_fd >= 0:
            os.close(btf_fd)


def create_map_of_maps(name: str, definition: MapDefinition, each: MapDefinition) -> int:
    """Make an array of maps, all of which are there; its descriptor. Raises OSError."""
    array = -1
    try:
        for index in range(definition.max_entries):
            one = create_map(name, each)
            try:
                if array < 0:
                    array = create_map(name, definition, one)
                Map(array, 4)[index] = one.to_bytes(4, sys.byteorder)
            finally:
                os.close(one)  # the array keeps it
    except OSError:
        if array >= 0:
            os.close(array)
        raise
    return array


_OnSample = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


class RingBuffer:
    """The reader of a ring buffer. Raises OSError.

    Args:
        descriptor: the map's.
        on_record: gets each record; False ends the look at hand.
    """

    def __init__(self, descriptor: int, on_record: Callable[[bytes], bool]) -> None:
        def on_sample(_context: Any, data: int, size: int) -> int:
            # libbpf stops at a negative value, and would go on for ever while records come as fast as they are read.
            return 0 if on_record(ctypes.string_at(data, size)) else -1

        lib = libbpf()
        lib.ring_buffer__new.restype = ctypes.c_void_p
        self._on_sample = _OnSample(on_sample)  # as long as libbpf may call it
        self._reader = ctypes.c_void_p(lib.ring_buffer__new(descriptor, self._on_sample, None, None))
        if not self._reader:
            # libbpf 1.x returns NULL and sets errno.
            raise OSError(ctypes.get_errno(), f"ring_buffer__new: {os.strerror(ctypes.get_errno())}")
        self._consume = lib.ring_buffer__consume

    def consume(self) -> None:
        """Hand over the records that are there."""
        self._consume(self._reader)

    def close(self) -> None:
        libbpf().ring_buffer__free(self._reader)
