"""Compiled sources as data: descriptors become names, names become descriptors, files say what was written."""

from __future__ import annotations

import hashlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spandial_agent.kernel.compiled import (
    Compiled,
    Function,
    Keeping,
    MapDefinition,
    decode,
    encode,
    resolve,
)

EXIT = bytes.fromhex("9500000000000000")


def instruction(operation: int, registers: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("<BBhi", operation, registers, offset, value)


def load_64(value: int, source: int = 0) -> bytes:
    """The instruction that loads 64 bits: into register 1, with `source` saying what the value is."""
    return instruction(0x18, 1 | source << 4, value=value) + instruction(0)


def load_map(descriptor: int) -> bytes:
    return load_64(descriptor, 1)


KEEPING = Keeping(
    "key",
    "toolchain",
    Compiled(
        {"counts": MapDefinition(6, 4, 160, 4098, 0), "rates": MapDefinition(2, 4, 64, 4098, 1024)},
        {"on_socket": resolve(load_map(5) + EXIT, {5: "counts"}), "step": Function(EXIT, {})},
    ),
)


def test_each_reference_to_a_map_gets_that_maps_descriptor() -> None:
    function = resolve(load_map(5) + EXIT + load_map(7) + load_map(5), {5: "counts", 7: "rates"})
    assert function.maps == {0: "counts", 3: "rates", 5: "counts"}
    assert function.relocated({"counts": 11, "rates": 12}) == load_map(11) + EXIT + load_map(12) + load_map(11)


def test_instructions_without_descriptors_are_the_same_whatever_the_descriptors_were() -> None:
    assert resolve(load_map(5), {5: "counts"}) == resolve(load_map(99), {99: "counts"})


def test_a_number_that_looks_like_a_descriptor_stays_a_number() -> None:
    # Also where the upper half of a 64-bit value looks like the instruction itself.
    code = load_64(5) + instruction(0x18, 1, value=5) + instruction(0x18, 0x11, value=5) + EXIT
    assert resolve(code, {5: "counts"}) == Function(code, {})


def test_a_descriptor_of_no_known_map_is_refused() -> None:
    with pytest.raises(KeyError):
        resolve(load_map(5), {6: "counts"})


def test_a_map_without_a_descriptor_is_refused() -> None:
    with pytest.raises(KeyError):
        resolve(load_map(5), {5: "counts"}).relocated({"rates": 5})


def test_a_file_says_what_was_written() -> None:
    assert decode(encode(KEEPING)) == KEEPING


@given(st.integers(0, len(encode(KEEPING)) - 1), st.integers(1, 255))
def test_a_file_with_one_changed_byte_is_refused(at: int, change: int) -> None:
    file = bytearray(encode(KEEPING))
    file[at] ^= change
    with pytest.raises(ValueError, match="damaged"):
        decode(bytes(file))


@given(st.integers(0, len(encode(KEEPING)) - 1))
def test_a_file_that_was_cut_short_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="damaged"):
        decode(encode(KEEPING)[:length])


@given(st.binary(max_size=200))
def test_a_file_of_something_else_is_refused(file: bytes) -> None:
    with pytest.raises(ValueError, match="damaged"):
        decode(file)


@pytest.mark.parametrize("text", [b'{"format": 0}', b'{"format": 1}', b'{"format": 1, "functions": []}', b"{}", b"[]"])
def test_a_file_of_another_format_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match="another format"):
        decode(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
