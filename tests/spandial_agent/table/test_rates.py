"""Rows handed out and taken back, and the memfd they live in."""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
import time

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from spandial import abi
from spandial_agent.processes.counter_page import CounterPage
from spandial_agent.table.memfd import MemfdTable
from spandial_agent.table.rates import RateTable, Row
from tests.spandial_agent.table.unprivileged_reader import run_as_nobody

TARGETS = abi.ROWS - 2

_words = st.integers(0, (1 << 64) - 1)
_rates = st.lists(_words, min_size=4, max_size=4)
_pids = st.integers(1, 1 << 22)


def owner_of(table: RateTable, row: Row) -> int:
    return table.backend.read(row.number)[abi.WORD_OWNER]


def test_the_first_row_says_what_the_table_is(table: RateTable) -> None:
    header = table.backend.read(abi.HEADER_ROW)
    assert header[abi.HEADER_MAGIC] == abi.MAGIC | abi.ABI
    assert header[abi.HEADER_MAGIC].to_bytes(8, "big")[:6] == b"SPANDI"
    assert header[abi.HEADER_GENERATION] == 0
    assert header[abi.HEADER_LEASE] == 0
    assert header[abi.HEADER_ROWS] == abi.ROWS
    assert header[4:] == (0, 0, 0, 0)


def test_a_row_is_rates_then_fallback_then_owner(table: RateTable) -> None:
    row = table.allocate(4711, [1, 2, 3, 4], 5)
    assert table.backend.read(row.number) == (1, 2, 3, 4, 0, 0, 5, row.epoch << 32 | 4711)


def test_writing_rates_leaves_the_owner(table: RateTable) -> None:
    row = table.allocate(4711, [1, 2, 3, 4], 5)
    table.write(row, [6, 7, 8, 9], 10)
    assert table.backend.read(row.number) == (6, 7, 8, 9, 0, 0, 10, row.epoch << 32 | 4711)


def test_the_nodes_default_row_has_no_owner(table: RateTable) -> None:
    table.write_default([1, 2, 3, 4], 5)
    assert table.backend.read(abi.DEFAULT_ROW) == (1, 2, 3, 4, 0, 0, 5, 0)


def test_a_freed_row_says_nothing(table: RateTable) -> None:
    row = table.allocate(4711, [1, 2, 3, 4], 5)
    table.free(row)
    assert table.backend.read(row.number) == (0,) * 8


def test_a_word_is_written_without_its_neighbours() -> None:
    backend = MemfdTable()
    backend.write(7, [11] * 8, 0b11111111)
    backend.write(8, [12] * 8, 0b11111111)
    backend.write(7, [99] * 8, 0b00100010)
    assert backend.read(7) == (11, 99, 11, 11, 11, 99, 11, 11)
    assert backend.read(8) == (12,) * 8
    backend.close()


def test_the_same_rates_are_written_to_several_rows(table: RateTable) -> None:
    rows = [table.allocate(pid, [1, 2, 3, 4], 5) for pid in (11, 12, 13)]
    table.write_many(rows[:2], [6, 7, 8, 9], 10)
    for row, pid in zip(rows[:2], (11, 12)):
        assert table.backend.read(row.number) == (6, 7, 8, 9, 0, 0, 10, row.epoch << 32 | pid)
    assert table.backend.read(rows[2].number)[:4] == (1, 2, 3, 4)


def test_the_generation_counts_changes_and_leaves_the_rest_of_the_header(table: RateTable) -> None:
    table.renew_lease(5)
    before = table.backend.read(abi.HEADER_ROW)
    table.advance()
    table.advance()
    after = table.backend.read(abi.HEADER_ROW)
    assert after[abi.HEADER_GENERATION] == 2
    assert (after[0], *after[2:]) == (before[0], *before[2:])


def test_the_lease_ends_so_many_seconds_from_now_on_the_clock_that_runs_in_suspend(table: RateTable) -> None:
    earliest = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + 2_500_000_000
    table.renew_lease(2.5)
    latest = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + 2_500_000_000
    header = table.backend.read(abi.HEADER_ROW)
    assert earliest <= header[abi.HEADER_LEASE] <= latest
    assert header[abi.HEADER_MAGIC] == abi.MAGIC | abi.ABI


def test_a_process_that_finds_no_row_shares_the_nodes_default_and_is_counted(table: RateTable) -> None:
    rows = [table.allocate(pid, [1] * 4, 1) for pid in range(1, TARGETS + 1)]
    assert {row.number for row in rows} == set(range(2, abi.ROWS))
    assert (table.free_rows, table.refused) == (0, 0)

    table.write_default([7, 7, 7, 7], 7)
    shared = [table.allocate(pid, [2] * 4, 2) for pid in (9001, 9002)]
    assert [row.number for row in shared] == [abi.DEFAULT_ROW, abi.DEFAULT_ROW]
    assert table.refused == 2
    assert table.backend.read(abi.DEFAULT_ROW) == (7, 7, 7, 7, 0, 0, 7, 0)

    table.free(shared[0])
    assert table.free_rows == 0
    assert table.backend.read(abi.DEFAULT_ROW) == (7, 7, 7, 7, 0, 0, 7, 0)
    table.free(rows[100])
    assert table.allocate(9003, [3] * 4, 3).number == rows[100].number


def test_a_row_rests_as_long_as_possible_before_its_next_tenant(table: RateTable) -> None:
    first = table.allocate(1, [1] * 4, 1)
    table.free(first)
    others = [table.allocate(2, [1] * 4, 1) for _ in range(TARGETS)]
    assert first.number not in {row.number for row in others[:-1]}
    assert others[-1].number == first.number
    assert others[-1].epoch != first.epoch


def test_the_epoch_wraps_without_ever_being_zero(table: RateTable) -> None:
    table._epoch = 0xFFFFFFFE
    epochs = [table.allocate(1, [1] * 4, 1).epoch for _ in range(3)]
    assert epochs == [0xFFFFFFFF, 1, 2]


class Tenancies(RuleBasedStateMachine):
    """Processes come, change their rates and end, in any order."""

    rows = Bundle("rows")

    def __init__(self) -> None:
        super().__init__()
        self.table = RateTable(MemfdTable())
        # Few rows, so that they are taken again and run out.
        while self.table.free_rows > 4:
            self.table.allocate(1, [0] * 4, 0)
        self.expected: dict[Row, tuple[int, ...]] = {}
        self.epochs: set[int] = set()

    @precondition(lambda self: self.table.free_rows)
    @rule(target=rows, pid=_pids, rates=_rates, fallback=_words)
    def begin(self, pid: int, rates: list[int], fallback: int) -> Row:
        row = self.table.allocate(pid, rates, fallback)
        assert row.number not in {live.number for live in self.expected}
        assert row.number not in (abi.HEADER_ROW, abi.DEFAULT_ROW)
        assert row.epoch not in self.epochs
        self.epochs.add(row.epoch)
        self.expected[row] = (*rates, 0, 0, fallback, row.epoch << 32 | pid)
        return row

    @precondition(lambda self: not self.table.free_rows)
    @rule(pid=_pids, rates=_rates)
    def begin_in_a_full_table(self, pid: int, rates: list[int]) -> None:
        before = self.table.refused
        assert self.table.allocate(pid, rates, 0).number == abi.DEFAULT_ROW
        assert self.table.refused == before + 1

    @rule(row=rows, rates=_rates, fallback=_words)
    def change(self, row: Row, rates: list[int], fallback: int) -> None:
        self.table.write(row, rates, fallback)
        self.expected[row] = (*rates, 0, 0, fallback, self.expected[row][abi.WORD_OWNER])

    @rule(row=consumes(rows))
    def end(self, row: Row) -> None:
        self.table.free(row)
        del self.expected[row]
        assert self.table.backend.read(row.number) == (0,) * 8

    @rule(rates=_rates)
    def change_the_default(self, rates: list[int]) -> None:
        self.table.write_default(rates, 0)

    @invariant()
    def every_live_process_has_its_words(self) -> None:
        for row, words in self.expected.items():
            assert self.table.backend.read(row.number) == words
        assert self.table.free_rows == 4 - len(self.expected)

    def teardown(self) -> None:
        self.table.close()


TestTenancies = Tenancies.TestCase


def test_a_process_without_privileges_reads_the_memfd_and_can_change_nothing(table: RateTable) -> None:
    report = run_as_nobody(table.backend.descriptor)
    assert report.uid != 0
    assert report.capabilities == 0
    assert int.from_bytes(bytes.fromhex(report.first[0]), "little") == abi.MAGIC | abi.ABI
    assert [attempt for attempt, failure in report.failures.items() if failure is None] == []
    assert report.first[0] == report.first[1]
    assert table.backend.read(abi.HEADER_ROW)[abi.HEADER_MAGIC] == abi.MAGIC | abi.ABI
    table.renew_lease(1)


def test_of_what_hooks_are_handed_nothing_can_be_opened_for_writing_or_without_seals(table: RateTable) -> None:
    for descriptor in (table.backend.descriptor, table.sheet.descriptor):
        assert fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        assert stat.S_IMODE(os.fstat(descriptor).st_mode) == 0o400
        # Its owner, and root in whatever container, may open it for writing: they meet the seals.
        os.fchmod(descriptor, 0o600)
        again = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR)
        with pytest.raises(PermissionError):
            os.pwrite(again, bytes(8), 0)
        with pytest.raises(PermissionError):
            mmap.mmap(again, mmap.PAGESIZE)
        with pytest.raises(PermissionError):
            os.ftruncate(again, 0)
        with pytest.raises(PermissionError):
            fcntl.fcntl(again, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        os.close(again)


def test_memory_that_the_kernel_has_not_sealed_is_never_handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(os.listdir("/proc/self/fd"))
    done = fcntl.fcntl
    monkeypatch.setattr(fcntl, "fcntl", lambda fd, how, *seals: done(fd, how) if how == fcntl.F_GET_SEALS else 0)
    with pytest.raises(OSError, match="has not sealed"):
        MemfdTable()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_row_that_somebody_else_changed_is_written_anew_and_counted(table: RateTable) -> None:
    rows = [table.allocate(pid, [pid, 2, 3, 4], 5) for pid in (1, 2, 3)]
    table.renew_lease(60)
    assert table.check() == []
    backend = table.backend
    assert isinstance(backend, MemfdTable)
    backend._words[rows[1].number * abi.ROW_WORDS] = 7
    backend._words[abi.HEADER_LEASE] = 1 << 62
    assert table.check() == ["row 0", f"row {rows[1].number}"]
    assert backend.read(rows[1].number)[:4] == (2, 2, 3, 4)
    assert backend.read(abi.HEADER_ROW)[abi.HEADER_LEASE] < 1 << 62
    assert (table.check(), table.altered) == ([], 2)


def test_the_highest_word_of_a_row_is_written_first() -> None:
    backend, order = MemfdTable(), []

    class Words:
        def __setitem__(self, at: int, word: int) -> None:
            order.append(at)

    words, backend._words = backend._words, Words()  # type: ignore[assignment]
    backend.write_many([2, 3], [0] * 8, 0b01101111)
    assert order == [22, 21, 19, 18, 17, 16, 30, 29, 27, 26, 25, 24]
    backend._words = words
    backend.close()


def test_the_same_attempts_succeed_on_a_page_that_may_be_written() -> None:
    page = CounterPage()
    os.fchmod(page.descriptor, 0o666)  # else nobody but its owner could open it anew
    failures = run_as_nobody(page.descriptor).failures
    page.close()
    for attempt in ("map_for_writing", "make_the_mapping_writable", "pwrite", "reopen_and_write", "reopen_and_map"):
        assert failures[attempt] is None, attempt


@pytest.mark.parametrize("seconds", [0, -1])
def test_a_lease_can_be_over_at_once(table: RateTable, seconds: float) -> None:
    table.renew_lease(seconds)
    assert table.backend.read(abi.HEADER_ROW)[abi.HEADER_LEASE] <= time.clock_gettime_ns(time.CLOCK_BOOTTIME)
