"""A frozen table and an attached capture in the test's own process."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from spandial import abi
from spandial.abi import EntryKind
from spandial_agent.capture.capture import Capture
from spandial_agent.capture.counts import Counts
from spandial_agent.kernel.cache import CompileCache
from spandial_agent.kernel.probe import missing_for_kernel
from spandial_agent.records.record import Entry, decode_entry
from spandial_agent.table.frozen import FrozenTable
from spandial_agent.table.rates import RateTable, Row
from tests.agent_process import COMPILED, eventually


class Watched(NamedTuple):
    """This process as a target of its own capture; nothing is read while `reading` is not set."""

    table: RateTable
    capture: Capture
    row: Row
    records: list[bytes]
    reading: threading.Event
    begin_ns: int

    def set(self, word: int, fallback: int = 0) -> None:
        self.table.write(self.row, [word] * len(EntryKind), fallback)

    def counts(self) -> Counts:
        return self.capture.counts(self.row.number)

    def seen(self) -> int:
        return self.counts().seen[EntryKind.HTTP]

    def kept(self) -> int:
        return self.counts().kept[EntryKind.HTTP]

    def emitted(self) -> list[Entry]:
        """The entries of this test; those of the one before may come late."""
        return [entry for entry in map(decode_entry, list(self.records)) if entry.time_ns >= self.begin_ns]

    def entries(self, count: int) -> list[Entry]:
        eventually(lambda: len(self.records) >= count and len(self.emitted()) >= count, f"{count} entries")
        return self.emitted()


Attached = tuple[RateTable, Capture, list[bytes], threading.Event]


@pytest.fixture(scope="session", autouse=True)
def table() -> Iterator[RateTable | None]:
    if missing_for_kernel():
        yield None
        return
    table = RateTable(FrozenTable(CompileCache(COMPILED)))
    yield table
    table.close()


@pytest.fixture(scope="module", params=["socket", "sys_exit"])
def attached(request: pytest.FixtureRequest, table: RateTable | None) -> Iterator[Attached]:
    assert table is not None
    assert isinstance(table.backend, FrozenTable)
    capture = Capture(table.backend.map_descriptor, request.param, cache=CompileCache(COMPILED))
    records: list[bytes] = []
    reading = threading.Event()
    reading.set()

    def read(batch: list[bytes]) -> None:
        reading.wait(60)
        records.extend(batch)

    capture.start(read)
    yield table, capture, records, reading
    capture.close()


@pytest.fixture
def watched(attached: Attached) -> Iterator[Watched]:
    table, capture, records, reading = attached
    records.clear()
    table.renew_lease(60)
    word = abi.encode_word(100, emit=True)
    row = table.allocate(os.getpid(), [word] * len(EntryKind), abi.encode_word(0))
    capture.add_target(os.getpid(), row)
    yield Watched(table, capture, row, records, reading, time.clock_gettime_ns(time.CLOCK_BOOTTIME))
    capture.remove_target(os.getpid())
    table.free(row)
