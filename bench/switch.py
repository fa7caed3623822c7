"""Capture that is switched on and off within a millisecond: `python -m bench.switch PATH`, a process of its own.

It is made of the agent's own parts: the frozen rate table, the compiled and verified programs, the maps, the thread
that reads the ring buffer. What is switched is the programs' attachment to their tracepoints. Off, they are loaded, and
the kernel runs none of them: to a server that is as if there were no agent. On, the kernel does all that it does under
an agent with the same rate word. The rest of an agent is not there: no discovery, no control plane, and the records
that come are counted and dropped, where an agent makes entries and spans of them. The ring buffer is empty at the
beginning of each time that capture is on: what a steady stream would lose, and what the agent's work takes, is for
bench/spans to say. An agent as it is, all of it, is measured in bench/cycles.py.

It ends with its standard input, and so with whoever started it; its programs end with it.

What it reads and writes is a contract between trees: bench/compare starts this program of an older checkout, too, and
drives it by the `Switch` of the newer one. Once it has loaded its programs it writes `null`. Then, each a line of JSON:
`["on", pid, rate, exported, operations, counting]` is answered `null`, `["off"]` by the fields of `Seen` in their
order. New arguments and fields come last and can be done without; none is removed or gets another meaning.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import structlog

from bench.checkout import ROOT
from bench.trees import HERE, Tree
from spandial.abi import EntryKind, Flag, Mode, encode_word
from spandial.patterns import parse_operation
from spandial_agent.capture.capture import Capture
from spandial_agent.capture.operation_map import OperationRule
from spandial_agent.errors import KernelUnavailable
from spandial_agent.kernel.compiler import Build
from spandial_agent.kernel.libbpf import Map
from spandial_agent.kernel.loader import Module
from spandial_agent.table.frozen import FrozenTable
from spandial_agent.table.rates import RateTable, Row

__all__ = ["Dial", "Seen", "Switch"]

_CapturePath = Literal["socket", "sys_exit"]
_SET = 1  # of rules by operation
_LEASE_S = 86_400.0  # nobody renews it here
_REST_S = 0.06  # a little longer than the reader of the ring buffer waits between two looks


class Dial(NamedTuple):
    """What a target is set to.

    Attributes:
        rate: in percent, in mode strict: the rate decides, and not the caller.
        exported: kept entries and the answers to them are handed over, as for an agent that makes spans of them.
        operations: rules by operation that there are, the last of which is for all that the others leave.
    """

    rate: float
    exported: bool = False
    operations: int = 0


class Seen(NamedTuple):
    """What the kernel saw between on and off.

    Attributes:
        requests: of the target by kind, entries and those that go the other way.
        ns, runs: of the programs, everybody's socket operations; zeros unless the kernel takes times.
        records: that were handed over.
        lost: events by reason.
        operations: of the target on sockets that moved data; None if they were not counted.
    """

    requests: list[int]
    ns: int
    runs: int
    records: int
    lost: dict[str, int]
    operations: int | None


class Switch:
    """The process, as the benchmark sees it. Raises RuntimeError where it cannot be.

    Args:
        path: of capture.
        core: where it runs.
        tree: whose programs they are.
        compiling_on: cores for the compiler, which takes seconds; without any, the same one.
    """

    def __init__(self, path: str, core: int, tree: Tree = HERE, *, compiling_on: Sequence[int] = ()) -> None:
        self._tree = tree
        self._process = tree.start(["-m", "bench.switch", path], compiling_on or [core])
        self.pid = self._process.pid
        self._answer()
        for thread in Path(f"/proc/{self.pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), {core})

    def on(self, pid: int, dial: Dial, *, counting: bool = False) -> None:
        """Attach, with this process as the only target.

        Args:
            counting: count its socket operations, too; by a program that costs time itself.
        """
        self._ask("on", pid, *dial, counting)

    def off(self) -> Seen:
        """Detach, and wait until all records have been read: what was on leaves no work behind."""
        return Seen(*self._ask("off"))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _ask(self, *question: object) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"the process with {self._tree.path}'s capture ended with exit code {self._process.wait()}"
            )
        return json.loads(line)


class _Sums(NamedTuple):
    """What has been counted since the start."""

    losses: Counter[str]
    ns: int
    runs: int
    records: int


class _Operations:
    """Counts a process's socket operations while it lives. Raises KernelUnavailable before Linux 6.3."""

    def __init__(self, pid: int) -> None:
        self._module = Module(Build(ROOT / "bench" / "operations.c"))
        Map(self._module.map_fd("operating_tgid"), 4)[0] = pid.to_bytes(4, sys.byteorder)
        program = self._module.load("count_operation")
        for tracepoint in ("sock_send_length", "sock_recv_length"):
            self._module.attach(program, tracepoint)

    def close(self) -> int:
        """How many moved data."""
        counts = Map(self._module.map_fd("operations"), 8, per_cpu=True)[0]
        self._module.close()
        return sum(int.from_bytes(count, sys.byteorder) for count in counts)


class _Capturing:
    """The parts of the agent, in this process."""

    def __init__(self, path: _CapturePath) -> None:
        table = FrozenTable()
        self._table = RateTable(table)
        self._table.renew_lease(_LEASE_S)
        self._capture = Capture(table.map_descriptor, path)
        # What Capture attaches once and for all is here attached again and again.
        self._module, self._programs = self._capture._module, self._capture._programs
        self._module.detach()
        self._tracepoint = "sys_exit" if path == "sys_exit" else None
        self._pid, self._row = 0, Row(0, 0)
        self._rules: list[int] = []  # rows
        self._records = 0
        self._before = self._sums()
        self._counting: _Operations | None = None
        self._capture.start(self._take)

    def _take(self, records: list[bytes]) -> None:
        self._records += len(records)

    def on(self, pid: int, rate: float, exported: bool, operations: int, counting: bool) -> None:
        words = [encode_word(rate, Mode.STRICT, emit=exported)] * len(EntryKind)
        named = self._named(words, operations) if operations else 0
        if operations:
            words = [word | Flag.OPERATIONS for word in words]
        if pid == self._pid:
            self._table.write(self._row, words, 0, named)
        else:
            if self._pid:
                self._capture.remove_target(self._pid)
                self._table.free(self._row)
            self._pid, self._row = pid, self._table.allocate(pid, words, 0, named)
        # Anew each time: its counts begin at zero, and no connection is followed because another arm did so.
        self._capture.add_target(pid, self._row, answers=exported)
        if counting:
            self._counting = _operations(pid)
        self._before = self._sums()
        for program in self._programs:
            self._module.attach(program, self._tracepoint)

    def _named(self, words: list[int], operations: int) -> int:
        """What a row says whose process obeys so many rules by operation."""
        if not self._rules:
            patterns = [*(f"GET /api/v{number}/*" for number in range(1, operations)), "/*"]
            self._rules = self._table.allocate_operation_rows([words] * operations)
            kinds = EntryKind.HTTP, EntryKind.GRPC
            rules = [OperationRule(kinds, parse_operation(text), row) for text, row in zip(patterns, self._rules)]
            self._capture.set_operations(_SET, rules)
        for row in self._rules:
            self._table.write_operation_row(row, words)
        return _SET << 32

    def off(self) -> Seen:
        self._module.detach()
        operations = self._counting.close() if self._counting is not None else None
        self._counting = None
        self._rest()
        now, before = self._sums(), self._before
        counts = self._capture.counts(self._row.number)
        requests = [seen + reverse for seen, reverse in zip(counts.seen, counts.reverse)]
        lost = dict(now.losses - before.losses)
        ns, runs, records = now.ns - before.ns, now.runs - before.runs, now.records - before.records
        return Seen(requests, ns, runs, records, lost, operations)

    def _rest(self) -> None:
        """Wait for the reader, if anything was handed over."""
        if not self._table.backend.read(self._row.number)[EntryKind.HTTP] & Flag.EMIT:
            return
        records = -1
        while records != self._records:
            records = self._records
            time.sleep(_REST_S)

    def _sums(self) -> _Sums:
        programs = self._capture.programs
        ns, runs = sum(program.run_time_ns for program in programs), sum(program.run_count for program in programs)
        return _Sums(Counter(self._capture.losses()), ns, runs, self._records)

    def close(self) -> None:
        self._capture.close()
        self._table.close()


def _operations(pid: int) -> _Operations | None:
    try:
        return _Operations(pid)
    except KernelUnavailable:
        return None


def _main(path: _CapturePath) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the benchmark ends it
    # Standard output is for answers.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    try:
        capturing = _Capturing(path)
    except KernelUnavailable as error:
        sys.exit(str(error))
    print("null", flush=True)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        print(json.dumps(getattr(capturing, name)(*arguments)), flush=True)
    capturing.close()


if __name__ == "__main__":
    if sys.argv[1] not in ("socket", "sys_exit"):
        sys.exit(f"{sys.argv[1]} is no capture path")
    _main("socket" if sys.argv[1] == "socket" else "sys_exit")
