"""A node without a kernel, its processes, and what it tells of them."""

from __future__ import annotations

import asyncio
import mmap
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from typing import Any

from spandial import abi
from spandial.abi import EntryKind
from spandial.labels import Labels
from spandial_agent.dispatch import RecordDispatch
from spandial_agent.node import LocalNode
from spandial_agent.processes.counter_page import CounterPage
from spandial_agent.processes.proc import Process
from spandial_agent.table.rates import RateTable
from spandial_agent.targets.target import Target
from spandial_agent.targets.targets import Targets
from spandial_api.node_states import EntryEvent
from tests.spandial_agent.fake_capture import FakeCapture
from tests.spandial_agent.running_registrar import DEFAULT

__all__ = [
    "CHECKOUT",
    "LOCAL_KEPT",
    "REMOTE_DROPPED",
    "REMOTE_KEPT",
    "ROOT_KEPT",
    "Registrar",
    "count",
    "discovered",
    "hooked",
    "make_node",
    "read",
    "running",
]

CHECKOUT = Labels("checkout", "v1", "gray")
ROOT_KEPT, REMOTE_DROPPED, REMOTE_KEPT, LOCAL_KEPT = 1, abi.PAGE_REMOTE, abi.PAGE_REMOTE + 1, abi.PAGE_LOCAL + 1


class Registrar:
    refused = 2
    asked = 0
    sent_away = 0

    async def publish(self, targets: Collection[Target] | None = None) -> None:
        self.asked += 1

    def send_all_away(self) -> None:
        self.sent_away += 1


def make_node(
    table: RateTable, targets: Targets, capture: Any, registrar: Any, discovery: Any, spans: Any = None, **more: Any
) -> LocalNode:
    dispatch = RecordDispatch(table, targets, capture, spans, more.get("propagation"), clock=more.pop("clock", None))
    return LocalNode(table, targets, registrar, discovery, capture, dispatch, [], lease_s=0.2, **more)


def discovered(targets: Targets, pid: int = 4711, labels: Labels = CHECKOUT) -> Target:
    target = targets.discover(Process(pid, 1, "python", labels))
    assert target is not None
    return target


def hooked(targets: Targets) -> tuple[Target, memoryview]:
    """A hooked process, and its counter page as it has mapped it."""
    page = CounterPage()
    written = memoryview(mmap.mmap(page.descriptor, abi.PAGE_SIZE)).cast("Q")
    return targets.hook(Process(4711, 1, "python", CHECKOUT), CHECKOUT, DEFAULT, page), written


def count(page: memoryview, index: int, number: int, kind: EntryKind = EntryKind.HTTP) -> None:
    page[abi.PAGE_COUNTS + kind * abi.PAGE_KIND_STRIDE + index] = number


@asynccontextmanager
async def running(node: LocalNode) -> AsyncIterator[None]:
    task = asyncio.create_task(node.run())
    await asyncio.sleep(0)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def read(node: LocalNode, capture: FakeCapture, *batches: list[bytes]) -> list[EntryEvent]:
    """What a watcher of everything reads of these batches of records."""
    read: list[EntryEvent] = []
    async with running(node), node.watch("*", "*") as entries:
        for batch in batches:
            await asyncio.to_thread(capture.hand_over, batch)
        with suppress(asyncio.TimeoutError):
            while True:
                read.append(await asyncio.wait_for(anext(entries), 0.05))
    return read
