"""The kernel's clock as Unix time."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spandial_agent.clock import Clock, KernelClock, Reading

S = 1_000_000_000
UNIX = 1_700_000_000 * S  # Unix time less CLOCK_BOOTTIME in these tests


def reading(at: int, offset: int = UNIX, before: int = 0, after: int = 0) -> Reading:
    """The wall clock shows `at + offset`; it was read so many ns after and before the readings around it."""
    return Reading(at - before, at + offset, at + after)


def test_a_time_of_the_kernels_as_unix_time() -> None:
    assert Clock(reading(50 * S)).unix_ns(60 * S, 61 * S) == (UNIX + 60 * S, UNIX + 61 * S)


def test_times_before_the_first_reading_are_told_too() -> None:
    assert Clock(reading(50 * S)).unix_ns(1, 2) == (UNIX + 1, UNIX + 2)


def test_an_offset_lies_in_the_middle_of_what_a_reading_leaves_open() -> None:
    clock = Clock(reading(50 * S, before=3000, after=1000))
    assert clock.unix_ns(0, 0)[0] == UNIX + 1000


def test_readings_that_agree_narrow_the_offset_down() -> None:
    clock = Clock(reading(1 * S, before=9000, after=1000))
    clock.update(reading(2 * S, before=500, after=7000))
    assert clock.unix_ns(0, 0)[0] == UNIX - 250
    clock.update(reading(3 * S))
    clock.update(reading(4 * S, before=90_000, after=10_000))
    assert clock.unix_ns(0, 0)[0] == UNIX


@pytest.mark.parametrize("step", [-3600 * S, -1_000_000, 1_000_000, 3600 * S])
def test_a_step_of_the_wall_clock_is_followed_from_then_on(step: int) -> None:
    clock = Clock(reading(10 * S))
    clock.update(reading(20 * S, UNIX + step))
    assert clock.unix_ns(21 * S, 22 * S) == (UNIX + step + 21 * S, UNIX + step + 22 * S)
    assert clock.unix_ns(14 * S, 22 * S) == (UNIX + 14 * S, UNIX + 22 * S)
    assert clock.unix_ns(16 * S, 22 * S)[0] == UNIX + step + 16 * S  # it is nearer to the reading that showed the step


def test_a_step_and_the_step_back_are_two() -> None:
    clock = Clock(reading(10 * S))
    clock.update(reading(20 * S, UNIX + 5 * S))
    clock.update(reading(30 * S, UNIX))
    assert [clock.unix_ns(at * S, at * S)[0] - at * S - UNIX for at in (14, 24, 34)] == [0, 5 * S, 0]


def test_rounding_is_no_step() -> None:
    clock = Clock(reading(10 * S))
    clock.update(reading(20 * S, UNIX + 2))
    assert clock.unix_ns(15 * S, 15 * S) == clock.unix_ns(15 * S, 15 * S)
    assert clock.unix_ns(15 * S, 15 * S)[0] - 15 * S == clock.unix_ns(25 * S, 25 * S)[0] - 25 * S


def test_a_clock_that_is_set_all_the_time_takes_no_more_memory() -> None:
    clock = Clock(reading(0))
    for number in range(1000):
        clock.update(reading(number * S, UNIX + number * S))
    assert len(clock._offsets) < 100
    assert clock.unix_ns(999 * S, 999 * S)[0] == UNIX + 2 * 999 * S
    assert clock.unix_ns(0, 1)[0] > UNIX


_readings = st.builds(
    reading,
    at=st.integers(1 << 40, 1 << 50),
    offset=st.integers(1 << 59, 1 << 61) | st.integers(UNIX - 5000, UNIX + 5000),
    before=st.integers(0, 100_000),
    after=st.integers(0, 100_000),
)


@given(st.lists(_readings, min_size=1, max_size=30), st.integers(0, 1 << 51), st.integers(0, 1 << 51))
def test_whatever_the_wall_clock_does_no_exchange_ends_before_it_starts(
    readings: list[Reading], start: int, end: int
) -> None:
    readings.sort(key=lambda each: each.after_ns)
    clock = Clock(readings[0])
    for each in readings[1:]:
        clock.update(each)
    unix_start, unix_end = clock.unix_ns(start, end)
    assert unix_end - unix_start == max(0, end - start)


@given(
    st.lists(st.tuples(st.integers(0, 50_000), st.integers(0, 50_000)), min_size=1, max_size=30),
    st.integers(0, 1 << 50),
)
def test_while_nobody_sets_the_clock_the_error_is_that_of_the_tightest_reading(
    brackets: list[tuple[int, int]], at: int
) -> None:
    clock = Clock(reading(S, before=brackets[0][0], after=brackets[0][1]))
    for number, (before, after) in enumerate(brackets[1:], 2):
        clock.update(reading(number * S, before=before, after=after))
    assert abs(clock.unix_ns(at, at)[0] - at - UNIX) <= min(sum(bracket) for bracket in brackets) // 2 + 1


def test_the_clocks_of_this_machine() -> None:
    kernel_clock = KernelClock()
    clock = Clock(kernel_clock.read())
    for _ in range(20):
        clock.update(kernel_clock.read())
    before = time.time_ns()
    now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    after = time.time_ns()
    unix, _ = clock.unix_ns(now, now)
    assert before - 1_000_000 <= unix <= after + 1_000_000
    assert len(clock._offsets) == 1


class Host:
    """A host's clocks, which tick once each time that they are read."""

    def __init__(self) -> None:
        self.boot_ns = 50 * S
        self.offset_ns = UNIX

    def boot(self) -> int:
        self.boot_ns += 10
        return self.boot_ns

    def wall(self) -> int:
        return self.boot() + self.offset_ns


def test_a_wall_clock_that_is_set_is_followed_by_who_asks() -> None:
    host = Host()
    clock = KernelClock(host.boot, host.wall)
    for step in (-3600 * S, 7200 * S, 1_000_000):
        before_ns = host.boot_ns
        host.boot_ns += 3600 * S  # nobody asks for an hour
        host.offset_ns += step
        asked_ns = host.boot_ns - 50_000_000  # a record that was on its way for a moment
        assert abs(clock.unix_ns(asked_ns, asked_ns)[0] - asked_ns - host.offset_ns) < 1_000
        assert abs(clock.unix_ns(before_ns, before_ns)[0] - before_ns - host.offset_ns + step) < 1_000


def test_clocks_are_read_once_a_second_whoever_asks() -> None:
    host = Host()
    clock = KernelClock(host.boot, host.wall)
    before, reads = host.boot_ns, 100
    for _ in range(reads):
        clock.unix_s(before)
    assert host.boot_ns - before == 10 * reads  # one look at the boot clock each


def test_any_thread_may_ask_while_the_wall_clock_is_set() -> None:
    host = Host()
    clock = KernelClock(host.boot, host.wall)

    def ask() -> None:
        for _ in range(2000):
            host.boot_ns += S
            host.offset_ns += S
            start, end = clock.unix_ns(0, 5)
            assert end - start == 5

    with ThreadPoolExecutor(4) as threads:
        for asking in [threads.submit(ask) for _ in range(4)]:
            asking.result()
