"""What a BPF source becomes: instructions, the places where they refer to maps, and the maps' definitions. Pure data.

As a file: the SHA-256 of the rest in hexadecimal, a line feed, and JSON. The file's `key` says what it was compiled
from and for (`Build.key`), its `toolchain` by what (`compiler.toolchain`).
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

__all__ = ["FORMAT", "Compiled", "Function", "Keeping", "MapDefinition", "decode", "encode", "resolve"]

FORMAT = 1
_INSTRUCTION = struct.Struct("<BBhi")
_LOAD_64 = 0x18  # BPF_LD | BPF_IMM | BPF_DW: two instructions, each with half of the value
_PSEUDO_MAP_FD = 1  # in the source register: the value is a map's descriptor (include/uapi/linux/bpf.h)


class MapDefinition(NamedTuple):
    """What the kernel is told when the map is made; `kind` is an enum bpf_map_type, sizes are in bytes."""

    kind: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


class Function(NamedTuple):
    """Instructions without descriptors, and which map each of those loads is of: index of the instruction -> name."""

    code: bytes
    maps: dict[int, str]

    def relocated(self, descriptors: Mapping[str, int]) -> bytes:
        """The instructions with the maps' descriptors. Raises KeyError for a map that has none."""
        code = bytearray(self.code)
        for index, name in self.maps.items():
            struct.pack_into("<i", code, index * _INSTRUCTION.size + 4, descriptors[name])
        return bytes(code)


class Compiled(NamedTuple):
    """One compiled source. `maps` are its own; those that it shares with others have only references."""

    maps: dict[str, MapDefinition]
    functions: dict[str, Function]


class Keeping(NamedTuple):
    """What a file says."""

    key: str
    toolchain: str
    compiled: Compiled


def resolve(code: bytes, names: Mapping[int, str]) -> Function:
    """A function whose instructions have descriptors. Raises KeyError for a descriptor without a name."""
    found = {index: names[value] for index, value in _map_loads(code)}
    return Function(Function(code, found).relocated(dict.fromkeys(found.values(), 0)), found)


def _map_loads(code: bytes) -> Iterator[tuple[int, int]]:
    """Index and descriptor of each instruction that loads a map's address."""
    at = 0
    while at < len(code):
        operation, registers, _, value = _INSTRUCTION.unpack_from(code, at)
        if operation == _LOAD_64 and registers >> 4 == _PSEUDO_MAP_FD:
            yield at // _INSTRUCTION.size, value
        at += _INSTRUCTION.size * (2 if operation == _LOAD_64 else 1)


def encode(keeping: Keeping) -> bytes:
    functions = {
        name: {"code": base64.b64encode(function.code).decode(), "maps": list(function.maps.items())}
        for name, function in keeping.compiled.functions.items()
    }
    text = json.dumps(
        {
            "format": FORMAT,
            "key": keeping.key,
            "toolchain": keeping.toolchain,
            "maps": keeping.compiled.maps,
            "functions": functions,
        }
    ).encode()
    return hashlib.sha256(text).hexdigest().encode() + b"\n" + text


def decode(file: bytes) -> Keeping:
    """Raises ValueError for a file that is damaged, or of another format."""
    digest, _, text = file.partition(b"\n")
    if digest.decode(errors="replace") != hashlib.sha256(text).hexdigest():
        raise ValueError("it is damaged")
    said: dict[str, Any] = json.loads(text)
    try:
        if said["format"] != FORMAT:
            raise ValueError("it is of another format")
        functions = {
            name: Function(base64.b64decode(function["code"]), dict(function["maps"]))
            for name, function in said["functions"].items()
        }
        maps = {name: MapDefinition(*values) for name, values in said["maps"].items()}
        return Keeping(said["key"], said["toolchain"], Compiled(maps, functions))
    except (KeyError, TypeError, AttributeError):
        raise ValueError("it is of another format") from None
