"""The few parts of an ELF file that probes need (elf(5)).

Whoever mapped the file wrote it: all that is read is bounded, and nothing outside of an executable segment is named."""

from __future__ import annotations

import os
import platform
import re
import struct
from collections.abc import Collection, Iterator
from typing import NamedTuple

__all__ = ["Elf", "NotElf"]

# Elf64_Ehdr from e_type on, Elf64_Phdr, Elf64_Shdr, Elf64_Sym
_HEADER = struct.Struct("<HHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_IDENTITY = 16  # bytes of e_ident
_CLASS_32, _CLASS_64, _LITTLE_ENDIAN = 1, 2, 1
_MACHINES = {"x86_64": 62, "aarch64": 183}
_EXEC, _DYN = 2, 3  # e_type
_LOAD, _EXECUTABLE = 1, 1  # p_type, p_flags
_SYMTAB, _DYNSYM = 2, 11  # sh_type
_FUNCTION = 2  # STT_FUNC

_SEGMENTS_MAX = 1024
_SECTIONS_MAX = 8192
_SYMBOLS_MAX = 2 << 20
_STRINGS_MAX = 64 << 20  # bytes of the names of one symbol table
_SECTION_NAMES_MAX = 1 << 20
_PLACES_MAX = 1024  # where names that are looked for end among those names
_PIECE = 1 << 20


class NotElf(ValueError):
    """A file is not an ELF file of this machine, or says of itself what no linker writes."""


class _Section(NamedTuple):
    name: int
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    align: int
    entry_size: int


class _Segment(NamedTuple):
    offset: int
    address: int
    size: int


class Elf:
    """An ELF file by a descriptor, which stays the caller's.

    Attributes:
        is_32_bit: nothing else is known of the file then.

    Raises NotElf, OSError.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._size = os.fstat(descriptor).st_size
        identity = os.pread(descriptor, _IDENTITY, 0)
        if len(identity) < _IDENTITY or identity[:4] != b"\x7fELF":
            raise NotElf("it is no ELF file")
        self.is_32_bit = identity[4] == _CLASS_32
        self._segments: list[_Segment] = []
        self._sections: list[_Section] = []
        if self.is_32_bit:
            return
        if identity[4] != _CLASS_64 or identity[5] != _LITTLE_ENDIAN:
            raise NotElf("it is not for this machine")
        kind, machine, _, _, segments, sections, _, _, segment_size, segment_count, section_size, count, names = (
            _HEADER.unpack(self._read(_IDENTITY, _HEADER.size))
        )
        if machine != _MACHINES.get(platform.machine()) or kind not in (_EXEC, _DYN):
            raise NotElf("it is not for this machine")
        if segment_count > _SEGMENTS_MAX or (segment_count and segment_size != _SEGMENT.size):
            raise NotElf(f"it has {segment_count} segments of {segment_size} bytes")
        if count > _SECTIONS_MAX or (count and section_size != _SECTION.size):
            raise NotElf(f"it has {count} sections of {section_size} bytes")
        for type_, flags, offset, address, _, size, _, _ in _SEGMENT.iter_unpack(
            self._read(segments, segment_count * _SEGMENT.size)
        ):
            if type_ == _LOAD and flags & _EXECUTABLE:
                self._segments.append(_Segment(offset, address, size))
        self._sections = [_Section(*each) for each in _SECTION.iter_unpack(self._read(sections, count * _SECTION.size))]
        self._names = names

    def has_section(self, name: str) -> bool:
        """Raises NotElf, OSError."""
        if self._names >= len(self._sections):
            return False
        table = self._sections[self._names]
        names = self._read(table.offset, min(table.size, _SECTION_NAMES_MAX))
        wanted = name.encode() + b"\0"
        return any(names.startswith(wanted, section.name) for section in self._sections)

    def functions(self, names: Collection[str]) -> dict[str, int]:
        """Where in the file the functions of these names begin, by a symbol table; those that it does not define, and
        those that are not in an executable segment, are left out. Raises NotElf, OSError."""
        offsets: dict[str, int] = {}
        for kind in (_DYNSYM, _SYMTAB):
            table = next((section for section in self._sections if section.kind == kind), None)
            if table is None or table.link >= len(self._sections) or table.entry_size != _SYMBOL.size:
                continue
            strings = self._sections[table.link]
            if table.size > _SYMBOLS_MAX * _SYMBOL.size or strings.size > _STRINGS_MAX:
                continue
            # Most files have none of them, and are done with here.
            places = self._places(strings, names)
            if not places:
                continue
            for piece in self._pieces(table, _SYMBOL.size):
                for at, info, _, section, address, _ in _SYMBOL.iter_unpack(piece):
                    if at in places and section and info & 0xF == _FUNCTION:
                        offset = self._code_offset(address)
                        if offset is not None:
                            offsets.setdefault(places[at], offset)
            if offsets:
                break
        return offsets

    def _places(self, strings: _Section, names: Collection[str]) -> dict[int, str]:
        """Where among the strings these names are. A name may be the end of another's."""
        found: dict[int, str] = {}
        keep = max(map(len, names))
        before, at = b"", 0
        for piece in self._pieces(strings, 1):
            text = before + piece
            start = at - len(before)
            for name in names:
                for match in re.finditer(re.escape(name.encode()) + b"\0", text):
                    found[start + match.start()] = name
                    if len(found) > _PLACES_MAX:
                        raise NotElf("its symbol table names the same functions again and again")
            at += len(piece)
            before = text[-keep:]
        return found

    def _code_offset(self, address: int) -> int | None:
        for segment in self._segments:
            into = address - segment.address
            if 0 <= into < segment.size and segment.offset + into < self._size:
                return segment.offset + into
        return None

    def _pieces(self, section: _Section, entry: int) -> Iterator[bytes]:
        """A section's bytes, in pieces of whole entries, as far as the file goes."""
        at, end = section.offset, min(section.offset + section.size // entry * entry, self._size)
        while at < end:
            piece = os.pread(self._descriptor, min(_PIECE // entry * entry, end - at), at)
            whole = len(piece) // entry * entry
            if not whole:
                return
            yield piece[:whole]
            at += whole

    def _read(self, offset: int, size: int) -> bytes:
        if offset + size > self._size:
            raise NotElf(f"it ends before {offset + size}")
        read = os.pread(self._descriptor, size, offset)
        if len(read) < size:
            raise NotElf("it became shorter while it was read")
        return read
