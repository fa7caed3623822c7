"""The sheet: blocks have room of their own, and nobody else can write them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from spandial import abi
from spandial_agent.table.sheet import Sheet
from tests.spandial_agent.table.unprivileged_reader import run_as_nobody


@pytest.fixture
def sheet() -> Iterator[Sheet]:
    sheet = Sheet()
    yield sheet
    sheet.close()


def test_a_process_that_is_handed_it_can_read_it_and_nothing_else(sheet: Sheet) -> None:
    assert sheet.put(b"12345678") == 0
    report = run_as_nobody(sheet.descriptor)
    assert report.first == (b"12345678".hex(), b"12345678".hex())
    assert [name for name, failure in report.failures.items() if failure is None] == []


def test_there_is_room_until_it_is_full_and_again_once_a_block_goes(sheet: Sheet) -> None:
    quarter = bytes(abi.SHEET_SIZE // 4)
    offsets = [sheet.put(quarter) for _ in range(4)]
    assert offsets == [n * len(quarter) for n in range(4)]
    assert sheet.put(b"x") is None
    sheet.free(len(quarter))
    assert sheet.put(quarter + b"x") is None
    assert sheet.put(quarter) == len(quarter)


def test_what_somebody_else_wrote_is_found_and_mended(sheet: Sheet) -> None:
    assert not sheet.repair()
    assert (sheet.put(b"a" * 9), sheet.put(b"b" * 9)) == (0, 16)
    assert not sheet.repair()
    sheet._map[20] = 7
    assert sheet.repair()
    assert sheet._map[16:25] == b"b" * 9
    assert not sheet.repair()


class Blocks(RuleBasedStateMachine):
    """Blocks come and go in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.sheet = Sheet()
        self.blocks: dict[int, bytes] = {}

    @rule(size=st.integers(1, abi.SHEET_SIZE // 3), letter=st.sampled_from([b"a", b"b", b"c"]))
    def put(self, size: int, letter: bytes) -> None:
        offset = self.sheet.put(letter * size)
        if offset is not None:
            assert offset % 8 == 0
            self.blocks[offset] = letter * size

    @precondition(lambda self: self.blocks)
    @rule(data=st.data())
    def freed(self, data: st.DataObject) -> None:
        offset = data.draw(st.sampled_from(sorted(self.blocks)))
        del self.blocks[offset]
        self.sheet.free(offset)

    @invariant()
    def each_is_as_it_was_put(self) -> None:
        for offset, block in self.blocks.items():
            assert self.sheet._map[offset : offset + len(block)] == block

    def teardown(self) -> None:
        self.sheet.close()


TestBlocks = Blocks.TestCase
