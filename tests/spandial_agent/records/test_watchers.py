"""Whoever watches the entries."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from spandial.labels import Labels
from spandial_agent.records import watchers as watchers_module
from spandial_agent.records.watchers import Watchers
from spandial_api.node_states import EntryEvent
from tests.agent_process import eventually

pytestmark = pytest.mark.anyio

GRAY, BLUE = Labels("checkout", "v1", "gray"), Labels("checkout", "v1", "blue")


@pytest.fixture
def watchers() -> Watchers:
    return Watchers(lambda: None, pause_s=0)


def event(number: int, labels: Labels = GRAY) -> EntryEvent:
    return EntryEvent(
        time=number,
        pid=1,
        **labels._asdict(),
        kind="http",
        protocol="http/1",
        method="GET",
        path=f"/{number}",
        trace_id="",
        parent_span_id="",
        kept_by="rate",
    )


async def test_every_coming_and_going_is_told_after_it_has_happened() -> None:
    told: list[tuple[bool, bool]] = []
    some = Watchers(lambda: told.append((some.wants(GRAY), some.wants(BLUE))), pause_s=0)
    async with some.watch("*", "gray"):
        assert told == [(True, False)]
        async with some.watch("check*", "*"):
            assert told[1:] == [(True, True)]
        assert told[2:] == [(True, False)]
    assert told[3:] == [(False, False)]


async def test_a_watcher_that_fails_is_one_less(watchers: Watchers) -> None:
    with suppress(ZeroDivisionError):
        async with watchers.watch("*", "*"):
            raise ZeroDivisionError
    assert not watchers.wants(GRAY)


@pytest.mark.parametrize(
    ("service", "env", "wanted"),
    [
        ("*", "*", True),
        ("checkout", "gray", True),
        ("check???", "gr*", True),
        ("checkout", "blue", False),
        ("cart", "*", False),
        ("", "*", False),
    ],
)
async def test_globs_pick_the_processes_that_are_watched(
    watchers: Watchers, service: str, env: str, wanted: bool
) -> None:
    async with watchers.watch(service, env):
        assert watchers.wants(GRAY) is wanted


async def test_every_watcher_gets_every_entry_that_it_wants_in_order(watchers: Watchers) -> None:
    async with watchers.watch("*", "*") as one, watchers.watch("*", "gray") as other:
        for number, labels in enumerate([GRAY, BLUE, GRAY]):
            watchers.offer(event(number, labels))
        assert [(await anext(one)).path for _ in range(3)] == ["/0", "/1", "/2"]
        assert [(await anext(other)).path for _ in range(2)] == ["/0", "/2"]


async def test_a_watcher_waits_for_the_next_entry(watchers: Watchers) -> None:
    async with watchers.watch("*", "*") as reader:
        for number in range(3):
            waiting = asyncio.ensure_future(anext(reader))
            await asyncio.sleep(0)
            assert not waiting.done()
            watchers.offer(event(number))
            assert (await waiting).path == f"/{number}"


async def test_a_slow_watcher_loses_what_does_not_fit_and_the_others_do_not(
    watchers: Watchers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchers_module, "_QUEUE", 4)
    async with watchers.watch("*", "*") as slow, watchers.watch("*", "*") as fast:
        for number in range(10):
            watchers.offer(event(number))
            assert (await anext(fast)).lost == 0
        assert watchers.lost == 6
        assert [(await anext(slow)).path for _ in range(4)] == ["/0", "/1", "/2", "/3"]


async def test_the_losses_are_told_with_the_first_entry_after_them(
    watchers: Watchers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchers_module, "_QUEUE", 2)
    async with watchers.watch("*", "*") as slow:
        for number in range(5):
            watchers.offer(event(number))
        read = [await anext(slow), await anext(slow)]
        watchers.offer(event(5))
        watchers.offer(event(6))
        read += [await anext(slow), await anext(slow)]
    assert [(entry.path, entry.lost) for entry in read] == [("/0", 0), ("/1", 0), ("/5", 3), ("/6", 0)]


async def test_what_a_slow_watcher_does_not_want_is_no_loss(
    watchers: Watchers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchers_module, "_QUEUE", 1)
    async with watchers.watch("*", "gray"):
        watchers.offer(event(0))
        watchers.offer(event(1, BLUE))
    assert watchers.lost == 0


async def test_without_watchers_nothing_is_lost(watchers: Watchers) -> None:
    watchers.offer(event(1))
    assert watchers.lost == 0


async def test_when_entries_end_so_do_the_streams_after_what_was_queued(watchers: Watchers) -> None:
    async with watchers.watch("*", "*") as behind, watchers.watch("*", "*") as waiting:
        watchers.offer(event(0))
        assert (await anext(waiting)).path == "/0"
        end = asyncio.ensure_future(anext(waiting, None))
        await asyncio.sleep(0)
        watchers.end()
        assert await end is None
        assert [entry.path async for entry in behind] == ["/0"]
    async with watchers.watch("*", "*") as late:
        assert [entry async for entry in late] == []


async def test_however_many_come_and_go_it_is_told_now_and_then() -> None:
    told: list[int] = []
    some = Watchers(lambda: told.append(len(some)), pause_s=0.2)

    async def look_in() -> None:
        async with some.watch("*", "gray"):
            assert told  # it has been told before anything is read

    await asyncio.gather(*(look_in() for _ in range(500)))
    await asyncio.to_thread(eventually, lambda: told[-1] == 0, "it has been told that all have gone")
    assert len(told) < 100
    async with some.watch("*", "gray"):
        assert told[-1] == 1


async def test_the_more_watch_the_less_each_may_be_behind(watchers: Watchers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchers_module, "_QUEUES", 12)
    async with watchers.watch("*", "*"), watchers.watch("*", "*"), watchers.watch("*", "*") as slow:
        for number in range(10):
            watchers.offer(event(number))
        assert watchers.lost == 3 * 6
        assert [(await anext(slow)).path for _ in range(4)] == ["/0", "/1", "/2", "/3"]


async def test_nothing_is_told_once_entries_have_ended() -> None:
    told: list[int] = []
    some = Watchers(lambda: told.append(len(some)), pause_s=0.1)
    async with some.watch("*", "gray"):
        assert told == [1]
        some.end()
    async with some.watch("*", "gray"):
        pass
    await asyncio.sleep(0.2)
    assert told == [1]


async def test_streams_that_are_given_up_end_at_once_and_what_waited_is_counted(watchers: Watchers) -> None:
    async with watchers.watch("*", "*") as entries:
        for number in range(3):
            watchers.offer(event(number))
        watchers.shed()
        assert [entry async for entry in entries] == []
        assert watchers.lost == 3
    async with watchers.watch("*", "*") as entries:  # who asks again is told again
        watchers.offer(event(7))
        assert (await anext(entries)).path == "/7"
