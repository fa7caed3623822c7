"""The counter page, which its process can fill with anything."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spandial import abi
from spandial_agent.processes.counter_page import CounterPage

MOST = 1 << 52


@pytest.fixture
def page() -> Iterator[CounterPage]:
    page = CounterPage()
    yield page
    page.close()


@pytest.fixture
def holder(page: CounterPage) -> memoryview:
    """The page as the process that holds its descriptor has mapped it."""
    return memoryview(mmap.mmap(page.descriptor, abi.PAGE_SIZE)).cast("Q")


def test_a_new_page_counts_nothing(page: CounterPage) -> None:
    assert page.read() == [0] * abi.PAGE_COUNT_WORDS
    assert page.published == 0


def test_what_the_process_counts_is_read(page: CounterPage, holder: memoryview) -> None:
    holder[abi.PAGE_COUNTS + 9] = 7
    holder[abi.PAGE_PUBLISHED] = 3
    assert page.read()[9] == 7
    assert page.published == 3
    assert page.implausible == 0


def test_a_count_that_goes_back_stays_where_it_was_until_it_is_past_it(page: CounterPage, holder: memoryview) -> None:
    read = []
    for count in (10, 4, 9, 11):
        holder[abi.PAGE_COUNTS] = count
        read.append(page.read()[0])
    assert read == [10, 10, 10, 11]
    assert page.implausible == 2


@pytest.mark.parametrize("count", [MOST, (1 << 63), (1 << 64) - 1])
def test_a_count_beyond_belief_is_ignored(page: CounterPage, holder: memoryview, count: int) -> None:
    holder[abi.PAGE_COUNTS] = 5
    page.read()
    holder[abi.PAGE_COUNTS] = count
    holder[abi.PAGE_COUNTS + 1] = 6
    assert page.read()[:2] == [5, 6]
    assert page.implausible == 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(min_size=abi.PAGE_SIZE // 8, max_size=abi.PAGE_SIZE // 8), max_size=6))
def test_whatever_is_in_the_page_counts_only_grow_and_stay_plausible(
    page: CounterPage, holder: memoryview, contents: list[bytes]
) -> None:
    before = page.read()
    for content in contents:
        holder[:64] = memoryview(content).cast("Q")
        now = page.read()
        assert all(0 <= then <= count < MOST for then, count in zip(before, now))
        before = now


@pytest.mark.parametrize("size", [0, 1, abi.PAGE_SIZE - 1, abi.PAGE_SIZE + 1, 1 << 30])
def test_its_holder_cannot_change_its_size(page: CounterPage, size: int) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(page.descriptor, size)
    assert os.fstat(page.descriptor).st_size == abi.PAGE_SIZE


@pytest.mark.parametrize("seal", [fcntl.F_SEAL_WRITE, fcntl.F_SEAL_SHRINK])
def test_its_holder_cannot_seal_it(page: CounterPage, seal: int) -> None:
    with pytest.raises(PermissionError):
        fcntl.fcntl(page.descriptor, fcntl.F_ADD_SEALS, seal)


def test_closing_frees_the_descriptor(page: CounterPage) -> None:
    other = CounterPage()
    other.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(other.descriptor)


class Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Time:
    return Time()


@pytest.fixture
def timed(clock: Time) -> Iterator[tuple[CounterPage, memoryview]]:
    page = CounterPage(clock=clock)
    yield page, memoryview(mmap.mmap(page.descriptor, abi.PAGE_SIZE)).cast("Q")
    page.close()


def test_more_than_there_was_time_for_is_left_out_and_counting_goes_on(
    clock: Time, timed: tuple[CounterPage, memoryview]
) -> None:
    page, holder = timed
    holder[abi.PAGE_COUNTS] = 1000
    assert page.read()[0] == 1000
    for _ in range(20):
        clock.now += 0.25
        holder[abi.PAGE_COUNTS] += 1 << 46
        holder[abi.PAGE_COUNTS] += 5
        page.read()
    assert page.read()[0] == 1000
    assert page.implausible == 20
    clock.now += 0.25
    holder[abi.PAGE_COUNTS] += 7
    assert page.read()[0] == 1007


def test_a_page_that_is_read_late_has_had_the_time(clock: Time, timed: tuple[CounterPage, memoryview]) -> None:
    page, holder = timed
    clock.now = 3600.0
    holder[abi.PAGE_COUNTS] = 3600 * 1_000_000
    assert page.read()[0] == 3600 * 1_000_000
    clock.now += 0.5
    page.read()  # the process was late to publish
    clock.now += 0.5
    holder[abi.PAGE_COUNTS] += 1_500_000
    assert page.read()[0] == 3600 * 1_000_000 + 1_500_000
    assert page.implausible == 0
