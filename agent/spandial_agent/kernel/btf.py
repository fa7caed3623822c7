"""Where the running kernel keeps the members of its structures: the headers that programs are compiled with may be
those of another version."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import Any

__all__ = ["member_offsets"]

_STRUCT = 4  # BTF_KIND_STRUCT (include/uapi/linux/btf.h)
_TYPE, _MEMBER = ctypes.c_uint32 * 3, ctypes.c_uint32 * 3  # struct btf_type; struct btf_member: name, type, offset


def member_offsets(members: Iterable[tuple[str, str]]) -> list[int] | None:
    """Offsets in bytes of members by structure and name; None if the kernel does not tell one of them.

    Members of anonymous members are not looked for.
    """
    lib = ctypes.CDLL("libbpf.so.1")
    lib.btf__load_vmlinux_btf.restype = lib.btf__type_by_id.restype = ctypes.c_void_p
    lib.btf__name_by_offset.restype = ctypes.c_char_p
    btf = lib.btf__load_vmlinux_btf()
    if not btf:
        return None
    btf = ctypes.c_void_p(btf)
    try:
        offsets = [_offset(lib, btf, structure.encode(), member.encode()) for structure, member in members]
    finally:
        lib.btf__free(btf)
    known = [offset for offset in offsets if offset is not None]
    return known if len(known) == len(offsets) else None


def _offset(lib: Any, btf: ctypes.c_void_p, structure: bytes, member: bytes) -> int | None:
    number = lib.btf__find_by_name_kind(btf, structure, ctypes.c_uint32(_STRUCT))
    address = lib.btf__type_by_id(btf, ctypes.c_uint32(number)) if number > 0 else None
    if not address:
        return None
    _, info, _ = _TYPE.from_address(address)
    for index in range(info & 0xFFFF):
        name, _, bits = _MEMBER.from_address(address + ctypes.sizeof(_TYPE) + index * ctypes.sizeof(_MEMBER))
        if lib.btf__name_by_offset(btf, ctypes.c_uint32(name)) == member:
            # With kind_flag the upper byte is a bit field's size.
            return (bits & 0xFFFFFF if info >> 31 else bits) // 8
    return None
