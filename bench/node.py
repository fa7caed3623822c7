"""A node in the benchmark's own process: table, targets, application socket and control plane, without HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.spinner import SERVICE
from spandial.abi import encode_word
from spandial.labels import Labels
from spandial_agent.discovery.discovery import Discovery
from spandial_agent.discovery.registrar import Registrar
from spandial_agent.dispatch import RecordDispatch
from spandial_agent.node import LocalNode
from spandial_agent.processes.proc import Process
from spandial_agent.table.rates import RateTable, TableBackend
from spandial_agent.targets.target import Target
from spandial_agent.targets.targets import Targets
from spandial_api.control import Author, Control
from spandial_api.rules import Rule, RuleBook
from spandial_api.selectors import Selector
from spandial_api.store import Store

__all__ = ["BenchNode", "PutTimes"]

_LEASE_S = 3600.0  # nobody renews it here
_NO_PROCESS = 1 << 23  # above the greatest possible pid (PID_MAX_LIMIT, 2^22)


class PutTimes:
    """One PUT's way through the handler, in ns of CLOCK_MONOTONIC."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.entered = time.monotonic_ns()
        self.prepared = self.applied = self.answered = 0


class _TimedNode(LocalNode):
    times: PutTimes | None = None

    def apply(self, book: RuleBook) -> None:
        if self.times is not None:
            self.times.prepared = time.monotonic_ns()
        super().apply(book)
        if self.times is not None:
            self.times.applied = time.monotonic_ns()


class BenchNode:
    """The parts that `run_agent` builds, as far as a PUT passes through them.

    Args:
        backend: where the table is.
        run_dir: gets `app.sock`.
        store: where the rules are written; `:memory:` for nowhere.
    """

    def __init__(self, backend: TableBackend, run_dir: Path, store: Path) -> None:
        self.table = RateTable(backend)
        self.table.renew_lease(_LEASE_S)
        self.targets = Targets(self.table, encode_word(100))
        self._registrar = Registrar(run_dir / "app.sock", self.table, self.targets, _LEASE_S)
        dispatch = RecordDispatch(self.table, self.targets, None)
        discovery = Discovery(self.targets)
        self._node = _TimedNode(self.table, self.targets, self._registrar, discovery, None, dispatch, [], _LEASE_S)
        self._store = Store(store)
        self._control = Control(self._store, self._node)
        self._crowd: list[int] = []

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Accept hooks; inside a running event loop."""
        self._registrar.start()
        try:
            yield
        finally:
            self._registrar.close()
            self._store.close()

    def crowd(self, count: int) -> None:
        """Have so many targets beside the real ones, that are no processes at all but have rows and obey rules."""
        for pid in self._crowd:
            self.targets.remove(pid)
        self._crowd = [_NO_PROCESS + index for index in range(count)]
        for pid in self._crowd:
            self.targets.discover(Process(pid, 1, "crowd", Labels("crowd", "1", "bench")))

    async def hooked(self, pid: int) -> Target:
        """The target of this pid, once it has registered. Raises TimeoutError."""
        for _ in range(1500):
            target = self.targets.get(pid)
            if target is not None and target.hooked:
                return target
            await asyncio.sleep(0.01)
        raise TimeoutError(f"process {pid} did not register")

    async def put(self, rate: float) -> PutTimes:
        """What the route of PUT /sampling does for the spinner's service."""
        times = self._node.times = PutTimes(rate)
        await self._control.put(Rule(Selector(service=SERVICE), rate), Author("a benchmark"))
        times.answered = time.monotonic_ns()
        return times
