"""Programs joined with their callbacks."""

from __future__ import annotations

import struct

import pytest

from spandial_agent.kernel.linker import CALLBACK_MARK, link

LOAD_64, EXIT = 0x18, 0x95


def load(number: int, upper: int, kind: int = 0) -> bytes:
    """A 64-bit load into register 2: two instructions."""
    return struct.pack("<BBhi", LOAD_64, 2 | kind << 4, 0, number) + struct.pack("<BBhi", 0, 0, 0, upper)


RETURN = struct.pack("<BBhi", EXIT, 0, 0, 0)


def test_a_callback_is_put_behind_the_program_and_referred_to() -> None:
    linked = link(load(3, CALLBACK_MARK) + RETURN, {3: RETURN + RETURN})
    assert linked.functions == (0, 3)
    # BPF_PSEUDO_FUNC, two instructions ahead of the one behind the load's first half
    assert linked.code == load(2, 0, kind=4) + RETURN + RETURN + RETURN


def test_an_unknown_callback_is_refused() -> None:
    with pytest.raises(KeyError):
        link(load(9, CALLBACK_MARK) + RETURN, {})
