"""What an ELF file has of TLS: functions of OpenSSL that can be probed, or a library that cannot."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from spandial_agent.capture.elf import Elf, NotElf
from spandial_agent.capture.openssl import FUNCTIONS, REQUIRED

__all__ = ["Image", "read_image"]

_LOOKED_THROUGH = 512 << 20  # bytes of an executable
_CHUNK = 1 << 20
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


def read_image(descriptor: int, executable: bool) -> Image:
    """Read an ELF file, or anything else, which has nothing.

    Args:
        executable: look for libraries without symbols, too, which takes a look at all of its bytes.
    """
    try:
        elf = Elf(descriptor)
        # Arguments are in registers in 64-bit programs alone.
        if elf.is_32_bit:
            return Image({}, "32-bit program" if executable else "")
        offsets = elf.functions(FUNCTIONS)
        if all(name in offsets for name in REQUIRED):
            return Image(offsets)
        if not executable:
            return Image({})
        return Image({}, _hidden(descriptor, _GO if elf.has_section(".go.buildinfo") else _OTHERS))
    except (NotElf, OSError):
        return Image({})


def _hidden(descriptor: int, traces: Mapping[bytes, str]) -> str:
    """The library whose traces are found first. Piece by piece, so that nobody waits for the whole."""
    overlap = b""
    for at in range(0, _LOOKED_THROUGH, _CHUNK):
        piece = os.pread(descriptor, _CHUNK, at)
        if not piece:
            break
        text = overlap + piece
        for trace, name in traces.items():
            if trace in text:
                return name
        overlap = text[-max(map(len, traces)) :]
    return ""
