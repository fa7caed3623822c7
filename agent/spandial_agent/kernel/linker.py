"""Join a BPF program with the step functions that it hands to bpf_loop: bcc compiles each function alone.

In C, a callback is a pointer whose upper half is `CALLBACK_MARK` and whose lower half is its number
(`CALLBACK` of bpf/core/loop.h). Here the callback's instructions are put behind the program's, and the pointer becomes
a reference to them (BPF_PSEUDO_FUNC, Linux 5.13, commit 69c087ba6225). The kernel wants to know by BTF that a callback
is a static function; types it does not ask for.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["CALLBACK_MARK", "Linked", "btf_of_bytes", "btf_of_functions", "link"]

CALLBACK_MARK = 0x5350414E
_INSTRUCTION = struct.Struct("<BBhi")
_LOAD_64 = 0x18  # BPF_LD | BPF_IMM | BPF_DW: two instructions, each with half of the value
_PSEUDO_FUNC = 4


class Linked(NamedTuple):
    """Instructions, and the index of each function's first one: the program's, then the callbacks'."""

    code: bytes
    functions: tuple[int, ...]


def link(program: bytes, callbacks: Mapping[int, bytes]) -> Linked:
    """The program with the callbacks that it, or one of them, refers to. Raises KeyError for an unknown number."""
    code = bytearray(program)
    starts: dict[int, int] = {}
    at = 0
    while at < len(code):
        operation, registers, _, _ = _INSTRUCTION.unpack_from(code, at)
        if operation != _LOAD_64:
            at += _INSTRUCTION.size
            continue
        number = _INSTRUCTION.unpack_from(code, at)[3]
        upper = _INSTRUCTION.unpack_from(code, at + _INSTRUCTION.size)[3]
        if upper == CALLBACK_MARK and not registers >> 4:
            if number not in starts:
                starts[number] = len(code) // _INSTRUCTION.size
                code += callbacks[number]
            # Relative to the next instruction, as a call is.
            offset = starts[number] - at // _INSTRUCTION.size - 1
            _INSTRUCTION.pack_into(code, at, _LOAD_64, registers | _PSEUDO_FUNC << 4, 0, offset)
            _INSTRUCTION.pack_into(code, at + _INSTRUCTION.size, 0, 0, 0, 0)
        at += 2 * _INSTRUCTION.size
    return Linked(bytes(code), (0, *starts.values()))


def btf_of_functions(functions: tuple[int, ...]) -> tuple[bytes, bytes]:
    """BTF that says "static functions", and the func_info records that say where they are (include/uapi/linux/btf.h,
    struct bpf_func_info)."""
    prototype, function = 13 << 24, 12 << 24
    strings = b"\0program\0callback\0"
    types = struct.pack("<3I3I3I", 0, prototype, 0, 1, function, 1, 9, function, 1)
    where = b"".join(struct.pack("<II", start, 3 if index else 2) for index, start in enumerate(functions))
    return _btf(types, strings), where


def btf_of_bytes(size: int) -> tuple[bytes, int, int]:
    """BTF that has an int and an array of so many bytes, and the numbers of these two types."""
    integer, array = 1 << 24, 3 << 24
    types = struct.pack("<4I", 1, integer, 4, 1 << 24 | 32)  # 1: signed, 32 bits
    types += struct.pack("<4I", 5, integer, 1, 8)  # 2
    types += struct.pack("<3I3I", 0, array, 0, 2, 1, size)  # 3: of type 2, indexed by type 1
    return _btf(types, b"\0int\0byte\0"), 1, 3


def _btf(types: bytes, strings: bytes) -> bytes:
    return struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings)) + types + strings
