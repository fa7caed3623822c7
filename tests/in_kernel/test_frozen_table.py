"""The two copies: one BPF program writes the frozen map, hooks read a memfd, nobody else can change either."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spandial import abi
from spandial_agent.kernel.cache import CompileCache
from spandial_agent.kernel.libbpf import Map, program_info
from spandial_agent.kernel.loader import Module
from spandial_agent.table.frozen import RATES, FrozenTable
from spandial_agent.table.rates import RateTable
from spandial_agent.targets.targets import Targets
from tests.agent_process import COMPILED
from tests.spandial_agent.running_registrar import RunningRegistrar, hello
from tests.spandial_agent.table.unprivileged_reader import run_as_nobody

pytestmark = pytest.mark.kernel


@pytest.fixture
def backend() -> Iterator[FrozenTable]:
    backend = FrozenTable(CompileCache(COMPILED))
    yield backend
    backend.close()


def test_an_unprivileged_process_can_read_it_and_change_nothing(backend: FrozenTable) -> None:
    RateTable(backend)
    report = run_as_nobody(backend.descriptor)
    assert (report.uid, report.capabilities) == (65534, 0)
    expected = (abi.MAGIC | abi.ABI).to_bytes(8, "little").hex()
    assert report.first == (expected, expected)
    assert None not in report.failures.values(), report.failures


def test_the_verifier_is_done_with_its_programs_at_once() -> None:
    """An agent that starts waits for it: each way through them is looked at once, and not each combination of words."""
    module = Module(RATES, cache=CompileCache(COMPILED))
    programs = [module.load("write_row"), module.load("write_rows")]
    assert 0 < max(program_info(program).verified_instructions for program in programs) < 10_000
    module.close()


def test_what_hooks_are_handed_is_no_map_that_a_program_of_theirs_could_write(backend: FrozenTable) -> None:
    assert os.readlink(f"/proc/self/fd/{backend.descriptor}").startswith("/memfd:")
    with pytest.raises(OSError, match="Invalid argument"):
        Map(backend.descriptor, abi.ROW_SIZE)[2]


def test_a_process_that_registers_is_handed_no_descriptor_but_memory(backend: FrozenTable, tmp_path: Path) -> None:
    table = RateTable(backend)
    running = RunningRegistrar(tmp_path / "app.sock", table, Targets(table, abi.encode_word(1)))
    peer = running.peer()
    assert "row" in peer.register(hello())
    links = [os.readlink(f"/proc/self/fd/{descriptor}") for descriptor in peer.descriptors]
    assert [link.partition(" ")[0] for link in links] == [
        f"/memfd:spandial-{name}" for name in ("rates", "counts", "sheet")
    ]
    peer.close()
    running.stop()
    table.sheet.close()


def test_no_program_that_the_agent_starts_has_the_maps_descriptor(backend: FrozenTable) -> None:
    assert not os.get_inheritable(backend.map_descriptor)


def test_even_the_agent_cannot_write_the_map_past_the_program(backend: FrozenTable) -> None:
    with pytest.raises(PermissionError):
        mmap.mmap(backend.map_descriptor, abi.TABLE_SIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    with pytest.raises(PermissionError):
        Map(backend.map_descriptor, abi.ROW_SIZE)[2] = bytes(abi.ROW_SIZE)


def hooks_copy(backend: FrozenTable) -> memoryview:
    return memoryview(mmap.mmap(backend.descriptor, abi.TABLE_SIZE, mmap.MAP_SHARED, mmap.PROT_READ)).cast("Q")


@pytest.mark.parametrize("rows", [[2], [2, 3, 900], list(range(2, 50)), list(range(2, abi.ROWS))])
@pytest.mark.parametrize("mask", [0b01101111, 0b11111111, 0b00010000])
def test_both_copies_say_the_same_after_each_write(backend: FrozenTable, rows: list[int], mask: int) -> None:
    backend.write_many(rows, [11, 12, 13, 14, 15, 16, 17, 18], mask)
    written = hooks_copy(backend)
    for row in range(abi.ROWS):
        assert tuple(written[row * 8 : row * 8 + 8]) == backend.read(row)
    assert backend.repair() == []


@pytest.mark.parametrize("rows", [[3], [3, 4, 5]])
def test_hooks_have_a_word_before_the_kernel_has_it(
    backend: FrozenTable, rows: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    written, seen = hooks_copy(backend), []
    for name in ("_run", "_run_many"):
        run = getattr(backend, name)

        def looked(*arguments: int, run: Callable[..., int] = run) -> int:
            seen.append((written[3 * 8], backend.read(3)[0]))
            return run(*arguments)

        monkeypatch.setattr(backend, name, looked)
    backend.write_many(rows, [7] * 8, 0b01101111)
    assert seen == [(7, 0)]
    assert backend.read(3)[0] == 7


def test_what_somebody_else_wrote_into_the_map_is_found_and_mended(backend: FrozenTable) -> None:
    table = RateTable(backend)
    row = table.allocate(4711, [1, 2, 3, 4], 5)
    assert table.check() == []
    backend._write_map(row.number, [9] * 8, 0b00000101)  # as a program would that has the map's descriptor
    assert backend.read(row.number)[:4] == (9, 2, 9, 4)
    assert (table.check(), table.altered) == ([f"row {row.number}"], 1)
    assert backend.read(row.number)[:4] == (1, 2, 3, 4)
    assert (table.check(), table.altered) == ([], 1)


def test_a_write_is_in_the_mapped_page_when_it_returns(backend: FrozenTable) -> None:
    words = memoryview(mmap.mmap(backend.descriptor, abi.TABLE_SIZE, mmap.MAP_SHARED, mmap.PROT_READ)).cast("Q")
    for value in range(1000):
        backend.write(7, [value] * 8, 0b11111111)
        assert words[7 * 8 : 8 * 8].tolist() == [value] * 8


def test_only_the_words_of_the_mask_are_written(backend: FrozenTable) -> None:
    backend.write(9, [1] * 8, 0b11111111)
    backend.write(9, [2] * 8, 0b00100101)
    assert backend.read(9) == (2, 1, 2, 1, 1, 2, 1, 1)


@pytest.mark.parametrize("count", [1, 2, 19, 20, 21, 4096])
def test_the_same_words_are_written_to_many_rows_and_to_no_other(backend: FrozenTable, count: int) -> None:
    for row in range(1, abi.ROWS):
        backend.write(row, [9] * 8, 0b11111111)
    rows = list(range(abi.ROWS - count, abi.ROWS))
    backend.write_many(rows, [1, 2, 3, 4, 5, 6, 7, 8], 0b01101111)
    for row in range(1, abi.ROWS):
        assert backend.read(row) == ((1, 2, 3, 4, 9, 6, 7, 9) if row >= rows[0] else (9,) * 8)


@pytest.mark.parametrize("mask", [0b01001111, 0b00000001, 0b10010000])
def test_of_many_rows_only_the_words_of_the_mask_are_written(backend: FrozenTable, mask: int) -> None:
    backend.write_many([2, 7, abi.ROWS - 1], [1, 2, 3, 4, 5, 6, 7, 8], mask)
    assert backend.read(7) == tuple(word if mask >> word - 1 & 1 else 0 for word in range(1, 9))
    with pytest.raises(IndexError):
        backend.write_many([2, abi.ROWS], [0] * 8, mask)


def test_every_row_is_there_and_none_beyond(backend: FrozenTable) -> None:
    backend.write(abi.ROWS - 1, [3] * 8, 0b11111111)
    assert backend.read(abi.ROWS - 1) == (3,) * 8
    with pytest.raises(IndexError):
        backend.write(abi.ROWS, [3] * 8, 0b11111111)


def test_all_bits_of_a_word_survive(backend: FrozenTable) -> None:
    word = 0xFEDCBA9876543210
    backend.write(2, [word] * 8, 0b11111111)
    assert backend.read(2) == (word,) * 8


def test_a_closed_table_leaves_no_descriptor() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        FrozenTable(CompileCache(COMPILED)).close()
    assert len(os.listdir("/proc/self/fd")) <= before + 1
