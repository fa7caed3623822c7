"""ELF files by whoever wrote them: only functions in executable segments, and never much work."""

from __future__ import annotations

import platform
import re
import struct
import subprocess
import tracemalloc
from pathlib import Path

import pytest

from spandial_agent.capture.elf import _MACHINES, Elf, NotElf

pytestmark = pytest.mark.skipif(platform.machine() not in _MACHINES, reason="no probes on this architecture")

NAMES = ("SSL_read", "SSL_write")
_MANY = 1 << 40


def functions(path: Path) -> dict[str, int]:
    with open(path, "rb") as file:
        return Elf(file.fileno()).functions(NAMES)


def header(sections: int, section_count: int, segments: int = 64, segment_count: int = 1, machine: int = 0) -> bytes:
    return struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01".ljust(16, b"\0"),
        *(3, machine or _MACHINES[platform.machine()], 1, 0, segments, sections, 0),
        *(64, 56, segment_count, 64, section_count, 0),
    )


def write(
    path: Path,
    symbols: list[tuple[int, int]],
    strings: bytes,
    *,
    table_size: int | None = None,
    strings_size: int | None = None,
) -> Path:
    """A library whose only segment has code from 0x1000 to 0x2000, with a symbol table of (name, address)."""
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0x1000, 0x400000, 0x400000, 0x1000, 0x1000, 0x1000)
    table = b"".join(struct.pack("<IBBHQQ", name, 0x12, 0, 1, address, 8) for name, address in symbols)
    at, after = 0x3000, 0x3000 + len(table)
    size = len(table) if table_size is None else table_size
    sections = struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    sections += struct.pack("<IIQQQQIIQQ", 0, 11, 0, 0, at, size, 2, 0, 8, 24)
    sections += struct.pack("<IIQQQQIIQQ", 0, 3, 0, 0, after, strings_size or len(strings), 0, 0, 1, 0)
    content = (header(0x200, 3) + segment).ljust(0x200, b"\0") + sections
    path.write_bytes(content.ljust(0x3000, b"\0") + table + strings)
    return path


STRINGS = b"\0SSL_read\0SSL_write\0"


def test_an_address_becomes_a_place_in_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "file", [(1, 0x400010), (10, 0x400FFF)], STRINGS)
    assert functions(path) == {"SSL_read": 0x1010, "SSL_write": 0x1FFF}


@pytest.mark.parametrize("address", [0, 0x1010, 0x3FFFFF, 0x401000, 0x7FFFFFFFFFFF, (1 << 64) - 1])
def test_what_is_not_in_an_executable_segment_is_no_function(tmp_path: Path, address: int) -> None:
    path = write(tmp_path / "file", [(1, address), (10, 0x400020)], STRINGS)
    assert functions(path) == {"SSL_write": 0x1020}


def test_a_segment_may_say_more_than_the_file_has(tmp_path: Path) -> None:
    path = write(tmp_path / "file", [(1, 0x400010), (10, 0x700000)], STRINGS)
    content = bytearray(path.read_bytes())
    struct.pack_into("<Q", content, 64 + 32, _MANY)  # p_filesz
    path.write_bytes(content)
    assert functions(path) == {"SSL_read": 0x1010}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x7fELF",
        b"#!/bin/sh\n" * 20,
        header(0x200, 65535),
        header(0x200, 3, segment_count=65535),
        header((1 << 64) - 64, 3),
        header(0x200, 3, segments=(1 << 64) - 1),
        header(0, 0, machine=40).ljust(4096, b"\0"),
    ],
)
def test_what_no_linker_writes_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(NotElf):
        functions(path)


@pytest.mark.parametrize("which", ["table_size", "strings_size"])
def test_a_table_beyond_measure_is_not_read(tmp_path: Path, which: str) -> None:
    symbols = [(1, 0x400010)]
    path = write(tmp_path / "file", symbols, STRINGS, **{which: _MANY})
    with open(path, "r+b") as file:
        file.truncate(_MANY)  # all of it is a hole
    assert functions(path) == {}


def test_a_large_table_takes_little_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "file", [(1, 0x400010)], STRINGS, strings_size=60 << 20)
    with open(path, "r+b") as file:
        file.truncate(100 << 20)
    tracemalloc.start()
    try:
        assert functions(path) == {"SSL_read": 0x1010}
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_the_same_names_again_and_again_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "file", [(1, 0x400010)], b"\0" + b"SSL_read\0" * 100_000)
    with pytest.raises(NotElf, match="again and again"):
        functions(path)


def test_a_name_may_lie_between_two_pieces(tmp_path: Path) -> None:
    before = (1 << 20) - 4
    path = write(tmp_path / "file", [(before, 0x400010)], b"x" * before + STRINGS[1:])
    assert functions(path) == {"SSL_read": 0x1010}


@pytest.mark.needs("gcc", "readelf")
def test_it_finds_what_readelf_finds(tmp_path: Path) -> None:
    path = tmp_path / "made"
    source = "int SSL_read(void) { return 1; } int SSL_write(void) { return 2; }"
    subprocess.run(["gcc", "-shared", "-fPIC", "-x", "c", "-o", path, "-"], input=source, text=True, check=True)
    said = subprocess.run(["readelf", "-sW", path], capture_output=True, text=True, check=True).stdout
    # The code's segment of a shared library lies in the file as it does in memory.
    expected = {name: int(at, 16) for at, name in re.findall(r": ([0-9a-f]+) .* FUNC .* (SSL_\w+)\n", said)}
    assert functions(path) == expected
