"""The watch over trace contexts, with a kernel side that the tests play."""

from __future__ import annotations

import asyncio
import time

import pytest

from spandial.abi import DEFAULT_ROW, WORD_EXAMPLES, Event, RecordFlag
from spandial.labels import Labels
from spandial_agent.propagation import watch as watch_module
from spandial_agent.propagation.examples import Evidence
from spandial_agent.propagation.watch import PropagationWatch
from spandial_agent.records.record import decode_entry
from spandial_agent.table.rates import RateTable, Row
from spandial_agent.targets.targets import Targets
from spandial_api.node_states import LostContext
from tests.spandial_agent.fake_capture import FakeCapture, counts_of
from tests.spandial_agent.records.making import record
from tests.spandial_agent.running_discovery import within
from tests.spandial_agent.running_node import discovered
from tests.spandial_agent.set_clock import SetClock

pytestmark = pytest.mark.anyio

CLIENT, SERVER = 4711, 4712
TRACE = 0x0AF7651916CD43DD8448EB211C80319C
CALLS = 40  # while the kernel is asked for examples


class Played:
    """A client, a server, and what passes between them."""

    def __init__(self, table: RateTable, targets: Targets, capture: FakeCapture) -> None:
        self._table = table
        self._capture = capture
        self._sent = self._untraced = self._traced = 0
        self.client = discovered(targets, CLIENT, Labels("shop", "v1", "gray"))
        self.server = discovered(targets, SERVER, Labels("front", "v2", "gray"))
        self.clock = SetClock()
        self.watch = PropagationWatch(targets, table, capture, 0.3, clock=self.clock)  # type: ignore[arg-type]

    def passed(self, sent: int = 0, untraced: int = 0, traced: int = 0) -> None:
        """So many requests more were sent with a context, and received without and with one."""
        self._sent += sent
        self._untraced += untraced
        self._traced += traced
        seen = self._untraced + self._traced
        self._capture.counted[self.client.row.number] = counts_of(reverse=self._sent, reverse_traced=self._sent)
        self._capture.counted[self.server.row.number] = counts_of(seen=seen, seen_traced=self._traced)

    @property
    def asked(self) -> bool:
        """Whether the kernel is asked for examples of both."""
        words = {self._table.backend.read(target.row.number)[WORD_EXAMPLES] for target in (self.client, self.server)}
        assert len(words) == 1
        return bool(words.pop())

    async def look(self, *, arrives: bool, path: str = "/pay") -> list[LostContext]:
        """One look, and what is found; requests pass while the kernel is asked for examples, if it is."""
        looking = asyncio.create_task(self.watch.look())
        await within(lambda: self.asked or looking.done(), "examples are asked for, or nobody is looked at")
        if not looking.done():
            self._pass(self.clock.now_ns(), path, arrives)
        await looking
        assert not self.asked
        return self.watch.lost()

    def _pass(self, now_ns: int, path: str, arrives: bool) -> None:
        line = f"GET {path}?card=1 HTTP/1.1".encode()
        if arrives:
            self.passed(traced=CALLS)
        for number in range(CALLS):
            sent_ns, trace_id = now_ns + number * 5_000_000, TRACE + number
            sent = record(
                line, tgid=CLIENT, event=Event.EXAMPLE, flags=RecordFlag.SENT, trace_id=trace_id, time_ns=sent_ns
            )
            came = record(
                line, tgid=SERVER, event=Event.EXAMPLE, trace_id=trace_id if arrives else 0, time_ns=sent_ns + 1000
            )
            self.watch.take(decode_entry(sent))
            self.watch.take(decode_entry(came))


@pytest.fixture
def played(table: RateTable, targets: Targets, capture: FakeCapture) -> Played:
    return Played(table, targets, capture)


async def test_a_pair_between_which_contexts_are_lost_is_found(played: Played) -> None:
    played.passed(sent=100, untraced=60)
    [lost] = await played.look(arrives=False)
    assert (lost.client.service, lost.client.pid) == ("shop", CLIENT)
    assert (lost.server.service, lost.server.version, lost.server.pid) == ("front", "v2", SERVER)
    assert lost.count == 60
    assert (lost.example.method, lost.example.path) == ("GET", "/pay")
    assert 0 <= int(lost.example.trace_id, 16) - TRACE < CALLS
    assert abs(lost.example.time - time.time()) < 60


async def test_an_example_has_the_time_of_a_wall_clock_that_was_set(played: Played) -> None:
    played.clock.set(-3600 * 10**9)
    played.passed(sent=100, untraced=60)
    [lost] = await played.look(arrives=False)
    assert abs(lost.example.time - time.time() + 3600) < 60


async def test_what_is_lost_further_is_added_up(played: Played) -> None:
    played.passed(sent=100, untraced=60)
    await played.look(arrives=False)
    played.passed(sent=20, untraced=30)
    [lost] = await played.look(arrives=False, path="/other")
    assert (lost.count, lost.example.path) == (80, "/other")


async def test_contexts_that_arrive_are_not_lost(played: Played) -> None:
    played.passed(sent=100, untraced=60)
    assert await played.look(arrives=True) == []


async def test_a_pair_is_forgotten_once_contexts_arrive(played: Played) -> None:
    played.passed(sent=100, untraced=60)
    assert await played.look(arrives=False)
    played.passed(sent=100, untraced=60)
    assert await played.look(arrives=True) == []


@pytest.mark.parametrize(("sent", "untraced"), [(0, 100), (100, 0), (9, 100), (100, 9)])
async def test_nobody_is_looked_at_where_nothing_is_suspicious(
    played: Played, monkeypatch: pytest.MonkeyPatch, sent: int, untraced: int
) -> None:
    monkeypatch.setattr(RateTable, "want_examples", lambda *row: pytest.fail("examples are asked for"))
    played.passed(sent=sent, untraced=untraced, traced=1000)
    await played.watch.look()
    assert played.watch.lost() == []


async def test_who_is_suspicious_for_nothing_is_looked_at_ever_less(
    played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[int] = []

    async def nothing(pairs: list[tuple[int, int]]) -> dict[tuple[int, int], Evidence]:
        looked_at[-1] += 1
        return {}

    monkeypatch.setattr(played.watch, "_evidence", nothing)

    async def look(**passed: int) -> int:
        looked_at.append(0)
        played.passed(**passed)
        await played.watch.look()
        return looked_at[-1]

    looks = [await look(sent=100, untraced=100) for _ in range(40)]
    assert looks[:12] == [1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0]
    assert sum(looks) == 5
    assert await look(untraced=100) == 0  # the client is silent
    assert await look(sent=100, untraced=100) == 1


async def test_a_pair_is_forgotten_with_its_processes(played: Played, targets: Targets) -> None:
    played.passed(sent=100, untraced=60)
    assert await played.look(arrives=False)
    targets.remove(SERVER)
    assert played.watch.lost() == []
    targets.remove(CLIENT)
    await played.watch.look()


async def test_who_ends_while_examples_are_collected_is_left_alone(
    played: Played, targets: Targets, table: RateTable
) -> None:
    played.passed(sent=100, untraced=60)
    looking = asyncio.create_task(played.watch.look())
    await within(lambda: played.asked, "examples are asked for")
    targets.remove(SERVER)
    await looking
    assert played.watch.lost() == []
    assert table.backend.read(played.server.row.number)[WORD_EXAMPLES] == 0


async def test_a_busy_process_hands_over_no_more_than_is_looked_at(
    played: Played, monkeypatch: pytest.MonkeyPatch, table: RateTable
) -> None:
    monkeypatch.setattr(watch_module, "_EXAMPLES_MAX", 3)
    played.passed(sent=100, untraced=60)
    looking = asyncio.create_task(played.watch.look())
    await within(lambda: played.asked, "examples are asked for")
    for number in range(5):
        assert table.backend.read(played.server.row.number)[WORD_EXAMPLES] == (number < 3)
        played.watch.take(decode_entry(record(tgid=SERVER, event=Event.EXAMPLE)))
    assert table.backend.read(played.client.row.number)[WORD_EXAMPLES] == 1
    await looking
    assert not played.asked


async def test_a_look_that_fails_is_not_the_last(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0

    async def fails() -> None:
        nonlocal looks
        looks += 1
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(played.watch, "look", fails)
    monkeypatch.setattr(played.watch, "_interval_s", 0.01)
    running = asyncio.create_task(played.watch.run())
    await within(lambda: looks >= 3, "it looks again")
    running.cancel()


async def test_a_row_that_is_shared_is_never_asked_for_examples(table: RateTable) -> None:
    table.want_examples(Row(DEFAULT_ROW, 0), True)
    assert table.backend.read(DEFAULT_ROW)[WORD_EXAMPLES] == 0
