"""Threads and tasks that raise, end or stand still."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from spandial_agent import supervised
from spandial_agent.supervised import Supervised
from tests.agent_process import eventually


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervised, "_PAUSES_S", (0.0,))


@pytest.fixture
def stop() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def test_work_that_raises_is_started_again_and_that_is_told_for_some_time(stop: threading.Event) -> None:
    now, runs, ends = [1000.0], [0], [0]

    def work() -> None:
        runs[0] += 1
        if runs[0] < 3:
            raise OSError(28, "No space left\x1b[2J")
        stop.wait()

    def at_end() -> None:
        ends[0] += 1

    part = Supervised("spandial-x", "export of spans", work, at_end=at_end, clock=lambda: now[0])
    assert part.trouble == ""
    part.start()
    eventually(lambda: runs[0] == 3, "it runs again")
    assert part.is_alive()
    assert part.trouble == (
        "the export of spans (spandial-x) failed 2 times and was started again: OSError: [Errno 28] "
        "No space left\\x1b[2J."
    )
    now[0] += 301
    assert part.trouble == ""
    assert ends == [0]
    stop.set()
    part.join()
    assert ends == [1]
    assert part.trouble == ""


def test_work_that_fails_at_its_end_is_not_started_again(stop: threading.Event) -> None:
    runs = [0]

    def work() -> None:
        runs[0] += 1
        stop.wait()
        raise ValueError

    part = Supervised("spandial-x", "work", work)
    part.start()
    eventually(lambda: runs[0] == 1, "it runs")
    part._ending.set()
    stop.set()
    part.join()
    assert runs == [1]


def test_work_that_stands_still_is_told_until_it_goes_on(stop: threading.Event) -> None:
    now = [0.0]
    part = Supervised("spandial-x", "export of spans", stop.wait, still_s=10.0, clock=lambda: now[0])  # type: ignore[arg-type]
    part.start()
    now[0] = 10.0
    assert part.trouble == ""
    now[0] = 12.0
    assert part.trouble == "the export of spans (spandial-x) has stood still for 12 s: see the agent's log."
    part.beat()
    assert part.trouble == ""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_ends_for_good_is_told() -> None:
    def work() -> None:
        raise SystemExit

    part = Supervised("spandial-x", "export of spans", work)
    part.start()
    part._thread.join()
    assert part.trouble == "the export of spans (spandial-x) has ended: restart the agent."


def test_a_task_is_started_again_too() -> None:
    runs = [0]

    async def work() -> None:
        runs[0] += 1
        if runs[0] < 3:
            raise RuntimeError("no")

    part = Supervised("spandial-scan", "scanning for processes")
    asyncio.run(part.run_task(work))
    assert runs == [3]
    assert "failed 2 times and was started again: RuntimeError: no" in part.trouble
