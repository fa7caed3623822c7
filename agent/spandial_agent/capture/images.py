"""What an ELF file has of TLS: functions of OpenSSL that can be probed, or a library that cannot."""

from __future__ import annotations

import re
import struct
from collections.abc import Collection, Mapping
from typing import BinaryIO, NamedTuple

from elftools.elf.elffile import ELFFile

from spandial_agent.capture.openssl import FUNCTIONS, REQUIRED

__all__ = ["Image", "read_image"]

_SYMBOL = struct.Struct("<IBBHQQ")  # Elf64_Sym: name, info, other, section, value, size
_FUNCTION = 2  # STT_FUNC
_LOOKED_THROUGH = 512 << 20  # bytes of an executable
_CHUNK = 1 << 20
_SECTIONS_MAX = 1 << 16
_TABLE_MAX = 128 << 20  # bytes of a symbol table, or of its names
# What is left of a library in a stripped executable: names of functions in Go's line table, file names in messages.
_GO = {b"crypto/tls.": "Go crypto/tls"}
_OTHERS = {
    b"rustls/src/": "rustls",
    b"rustls-0.": "rustls",
    b"rustls::": "rustls",
    b"ssl/ssl_lib.cc": "BoringSSL without symbols",
    b"ssl/ssl_lib.c\0": "OpenSSL without symbols",
}


class Image(NamedTuple):
    """What one file has.

    Attributes:
        offsets: where in the file those of FUNCTIONS begin that it defines; empty unless REQUIRED are among them.
        hidden: the name of a TLS library that is linked into it and cannot be followed.
    """

    offsets: dict[str, int]
    hidden: str = ""


def read_image(file: BinaryIO, executable: bool) -> Image:
    """Read an ELF file, or anything else, which has nothing.

    Args:
        executable: look for libraries without symbols, too, which takes a look at all of its bytes.
    """
    try:
        elf = ELFFile(file)
        if elf.num_sections() > _SECTIONS_MAX:
            return Image({})
        # Arguments are in registers in 64-bit programs alone.
        if elf.elfclass != 64 or not elf.little_endian:
            return Image({}, "32-bit program" if executable else "")
        offsets = _function_offsets(elf, FUNCTIONS)
        if all(name in offsets for name in REQUIRED):
            return Image(offsets)
        go = executable and elf.get_section_by_name(".go.buildinfo") is not None
    except Exception:  # whoever mapped the file wrote it, and pyelftools has many exceptions for what is in one
        return Image({})
    return Image({}, _hidden(file, _GO if go else _OTHERS) if executable else "")


def _function_offsets(elf: ELFFile, names: Collection[str]) -> dict[str, int]:
    """Where in the file functions begin; those that it does not define are left out."""
    offsets: dict[str, int] = {}
    for table in filter(None, (elf.get_section_by_name(name) for name in (".dynsym", ".symtab"))):
        names_of = elf.get_section(table["sh_link"])
        if max(table["sh_size"], names_of["sh_size"]) > _TABLE_MAX:
            continue
        strings = names_of.data()
        # A name may be the end of another's. Most files have none of them, and are done with here.
        places = {
            match.start(): name for name in names for match in re.finditer(re.escape(name.encode()) + b"\0", strings)
        }
        if not places:
            continue
        for at, info, _, section, address, _ in _SYMBOL.iter_unpack(table.data()):
            if at in places and section and info & 0xF == _FUNCTION:
                for offset in elf.address_offsets(address):
                    offsets.setdefault(places[at], offset)
        if offsets:
            break
    return offsets


def _hidden(file: BinaryIO, traces: Mapping[bytes, str]) -> str:
    """The library whose traces are found first. Piece by piece, so that nobody waits for the whole."""
    file.seek(0)
    overlap = b""
    for _ in range(_LOOKED_THROUGH // _CHUNK):
        piece = file.read(_CHUNK)
        if not piece:
            break
        text = overlap + piece
        for trace, name in traces.items():
            if trace in text:
                return name
        overlap = text[-max(map(len, traces)) :]
    return ""
