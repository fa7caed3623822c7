"""What the node loses is counted by its reason."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from spandial import abi
from spandial.abi import Event
from spandial_agent import dispatch as dispatch_module
from spandial_agent.node import LocalNode
from spandial_agent.processes.backlog import Backlog
from spandial_agent.spans.exchanges import Peer
from spandial_agent.supervised import Supervised
from spandial_agent.table.memfd import MemfdTable
from spandial_agent.table.rates import RateTable
from spandial_agent.targets.targets import Targets
from spandial_api.node_states import NodeStats, SpanStats
from tests.spandial_agent.fake_capture import FakeCapture
from tests.spandial_agent.records.making import record
from tests.spandial_agent.running_node import (
    REMOTE_KEPT,
    ROOT_KEPT,
    Registrar,
    count,
    discovered,
    hooked,
    make_node,
    read,
    running,
)

pytestmark = pytest.mark.anyio


async def test_the_losses_of_all_parts_are_told(node: LocalNode, targets: Targets) -> None:
    _, page = hooked(targets)
    count(page, ROOT_KEPT, 1 << 60)
    await node.stats()
    losses = (await node.stats()).losses
    assert losses["registration_refused"] == 2
    assert losses["process_events"] == 3
    assert losses["counter_implausible"] >= 1
    assert {"watcher_slow", "agent_slow", "row_refused", "ring_full"} <= set(losses)


async def test_rows_that_somebody_else_changed_are_told_and_degrade_the_node(
    node: LocalNode, targets: Targets, table: RateTable
) -> None:
    target, _ = hooked(targets)
    assert (await node.stats()).losses["row_altered"] == 0
    assert isinstance(table.backend, MemfdTable)
    table.backend._words[target.row.number * abi.ROW_WORDS] ^= 1 << 60
    node._check_rows()
    assert (await node.stats()).losses["row_altered"] == 1
    health = node.health()
    assert health.status == "degraded"
    assert "somebody else wrote into the rate table: 1 row" in " ".join(health.missing)


async def test_a_hooks_nonsense_stays_counted_when_its_process_has_ended(node: LocalNode, targets: Targets) -> None:
    target, page = hooked(targets)
    count(page, ROOT_KEPT, 1 << 60)
    before = (await node.stats()).losses["counter_implausible"]
    assert before == 1
    targets.remove(target.pid)
    assert (await node.stats()).losses["counter_implausible"] == before


async def test_what_the_kernel_does_not_watch_has_no_kernels_counts(
    node: LocalNode, targets: Targets, capture: FakeCapture
) -> None:
    capture.room = 0
    _, page = hooked(targets)
    count(page, REMOTE_KEPT, 5)
    stats = await node.stats()
    assert stats.losses["target_unwatched"] == 1
    assert stats.targets[0].kinds["http"].kernel is None
    assert stats.targets[0].kinds["http"].difference_seen is None


class Spans:
    """Stands in for the pipeline: whose records it is given."""

    coming: Callable[[], int]
    lost_coming: Callable[[], dict[str, int]]

    def __init__(self) -> None:
        self.pids: list[int] = []
        self.given_up = 0

    def take(self, entry: object, call: object, process: Peer) -> None:
        self.pids.append(process.pid)

    def exited(self, pid: int) -> None:
        pass

    def spans(self) -> SpanStats:
        return SpanStats(kept=len(self.pids), exported=len(self.pids), queued=0, lost=self.lost_coming())

    def come(self) -> None:
        pass

    def give_up(self, count: int) -> None:
        self.given_up += count

    def losses(self) -> dict[str, int]:
        return {}


async def test_records_of_a_process_that_ended_too_long_ago_are_counted(
    table: RateTable,
    targets: Targets,
    capture: FakeCapture,
    registrar: Registrar,
    discovery: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatch_module, "_ENDED", 2)
    spans = Spans()
    node = make_node(table, targets, capture, registrar, discovery, spans=spans)
    for pid in (1, 2, 3):
        discovered(targets, pid)
        targets.remove(pid)
    hooked(targets)  # 4711, whose spans are its own
    async with running(node):
        capture.hand_over([record(tgid=pid) for pid in (1, 2, 3, 4711)])
        await asyncio.sleep(0.01)
        targets.remove(4711)
        capture.hand_over([record(tgid=4711)])
        await asyncio.sleep(0.01)
    assert spans.pids == [2, 3]
    stats = await node.stats()
    assert stats.losses["span_process_unknown"] == 1
    assert stats.spans == SpanStats(
        kept=2, exported=2, queued=0, lost={"span_process_unknown": 1, "agent_slow": 0, "ring_full": 0}
    )


def test_what_comes_last_is_taken_although_the_event_loop_stands_still(
    table: RateTable, targets: Targets, capture: FakeCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    spans = Spans()
    dispatch = dispatch_module.RecordDispatch(table, targets, capture, spans)  # type: ignore[arg-type]
    discovered(targets)
    loop = asyncio.new_event_loop()
    for _ in range(3):
        dispatch.hand_over(loop, [record(), record(), record(event=Event.ANSWER)])
    loop.close()
    dispatch.hand_over(loop, [record()])
    assert spans.coming() == 7
    dispatch.close()
    assert (len(spans.pids), spans.given_up, spans.coming()) == (10, 0, 0)


def test_what_comes_last_and_is_too_much_is_counted(
    table: RateTable, targets: Targets, capture: FakeCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch_module, "_END_S", 0.0)
    spans = Spans()
    dispatch = dispatch_module.RecordDispatch(table, targets, capture, spans)  # type: ignore[arg-type]
    discovered(targets)
    loop = asyncio.new_event_loop()
    for _ in range(3):
        dispatch.hand_over(loop, [record(), record(), record(event=Event.ANSWER)])
    loop.close()
    dispatch.close()
    assert (spans.pids, spans.given_up) == ([], 6)


async def test_a_record_that_is_none_costs_only_itself(node: LocalNode, capture: FakeCapture) -> None:
    batch = [record(b"GET /1 HTTP/1.1"), b"short", record(kind=9), record(parent=9), record(b"GET /2 HTTP/1.1")]
    entries = await read(node, capture, batch, [record(b"GET /3 HTTP/1.1")])
    assert [entry.path for entry in entries] == ["/1", "/2", "/3"]
    assert (await node.stats()).losses["bad_record"] == 3


async def test_however_many_records_there_are_others_have_their_turns(
    node: LocalNode, capture: FakeCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch_module, "_SLICE_S", 0.0)
    records, turns = 10 * dispatch_module._PIECE, 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with running(node), node.watch("*", "*") as entries:
        capture.hand_over([record() for _ in range(records)])
        task = asyncio.create_task(others())
        for _ in range(records):
            await anext(entries)
        task.cancel()
    assert turns >= 10


def narrow(node: LocalNode) -> None:
    dispatch = node._dispatch
    dispatch._backlog = Backlog(16, dispatch._uid_of, dispatch.crowded)


async def test_what_the_event_loop_is_too_slow_for_is_counted(node: LocalNode, capture: FakeCapture) -> None:
    narrow(node)
    async with running(node):
        for _ in range(10):
            capture.hand_over([record(), record()])
        stats: NodeStats = await node.stats()
        assert stats.losses["agent_slow"] == 8
        await asyncio.sleep(0.01)
        capture.hand_over([record()])
        assert (await node.stats()).losses["agent_slow"] == 8


async def test_who_makes_very_many_records_takes_no_place_from_others(
    node: LocalNode, targets: Targets, capture: FakeCapture
) -> None:
    narrow(node)
    for pid, uid in ((1, 64321), (2, 1000)):
        discovered(targets, pid)
        target = targets.get(pid)
        assert target is not None
        target.uid = uid
    async with running(node), node.watch("*", "*") as entries:
        for _ in range(100):
            capture.hand_over([record(tgid=1)])
        capture.hand_over([record(b"GET /2 HTTP/1.1", tgid=2)])
        capture.hand_over([record(tgid=1)])
        assert "user 64321 had 12 of" in node._dispatch.crowded.trouble
        assert [(await anext(entries)).pid for _ in range(13)] == [1] * 12 + [2]
        assert (await node.stats()).losses["agent_slow"] == 89


async def test_what_others_lose_leaves_what_is_known_of_a_connection(node: LocalNode, capture: FakeCapture) -> None:
    """Of a connection that lost none, and of one that did."""
    narrow(node)
    forgotten: list[object] = []
    node._dispatch._conversations.forget = forgotten.append  # type: ignore[method-assign, assignment]
    async with running(node):
        for connection in range(1, 21):
            capture.hand_over([record(connection=connection)])
        await asyncio.sleep(0.01)
        assert forgotten == []
        capture.hand_over([record()])
        await asyncio.sleep(0.01)
    assert forgotten == [set(range(13, 21))]


async def test_paths_are_redacted_before_anybody_sees_them(
    table: RateTable, targets: Targets, capture: FakeCapture, registrar: Registrar, discovery: SimpleNamespace
) -> None:
    seen: list[object] = []
    spans = Spans()
    spans.take = lambda _entry, call, _process: seen.append(call.path)  # type: ignore[attr-defined, method-assign, assignment]
    dispatch = dispatch_module.RecordDispatch(table, targets, capture, spans, redact_paths="ids")  # type: ignore[arg-type]
    node = LocalNode(table, targets, registrar, discovery, capture, dispatch, [], lease_s=0.2)  # type: ignore[arg-type]
    discovered(targets)
    entries = await read(node, capture, [record(b"GET /users/4711?token=x HTTP/1.1")])
    assert [entry.path for entry in entries] == ["/users/{}"]
    assert seen == ["/users/{}"]


async def test_a_thread_that_failed_is_named_with_its_reason(
    table: RateTable, targets: Targets, capture: FakeCapture, registrar: Registrar, discovery: SimpleNamespace
) -> None:
    part = Supervised("spandial-export", "export of spans")
    node = make_node(table, targets, capture, registrar, discovery, supervised=[part], log_losses=lambda: {"log_x": 7})
    assert node.health().status == "ok"
    part._failed(OSError(28, "No space left"))
    assert node.health().status == "degraded"
    assert node.health().missing == [
        "the export of spans (spandial-export) failed once and was started again: OSError: [Errno 28] No space left."
    ]
    assert (await node.stats()).losses["log_x"] == 7
