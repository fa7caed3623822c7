"""Capture: which processes the kernel watches, what it counted, and the entries it emits."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

from spandial import abi
from spandial.abi import EntryKind, Loss
from spandial_agent.capture.counts import Counts
from spandial_agent.capture.openssl import TlsCapture
from spandial_agent.capture.operation_map import OperationRule, applies, entries, find
from spandial_agent.capture.tally import TALLY_SIZE
from spandial_agent.capture.target_map import TargetMap
from spandial_agent.errors import KernelUnavailable, OperationsFull
from spandial_agent.kernel.btf import member_offsets
from spandial_agent.kernel.cache import CompileCache
from spandial_agent.kernel.compiler import Build
from spandial_agent.kernel.libbpf import Map, ProgramInfo, program_info
from spandial_agent.kernel.loader import Module
from spandial_agent.supervised import Supervised
from spandial_agent.table.frozen import RATES
from spandial_agent.table.rates import Row

__all__ = ["SCANS", "Capture", "is_compiled"]

_RING_PAGES = 1024  # 4 MiB: about 12,000 entries between two looks
_LOOK_S = 0.05
_STILL_S = 30.0  # between two looks: the reader hands over, and waits for nobody
_BATCH = 2048  # records handed over at once
_LOOKS_AT_END = 64  # more than the ring buffer has batches: a probe that is still being detached may add some
_FEW = 64  # rows that are read one by one
_CONNECTIONS = 8192  # that are followed where sockets cannot keep what is known of them
# Methods and paths in the header tables of HTTP/2 connections that rules by operation may be about: so many of a user,
# and so many users. 13 MiB in the kernel.
_FIELDS, _FIELD_SHARES = 2048, 32
_OPERATIONS = 32_768  # entries of the longest-prefix map, of all sets of rules by operation together
# Of a set that changes the map holds new entries and old ones for a moment. It takes memory for those it has.
_DEFINES = {
    "SPANDIAL_CONNECTIONS": _CONNECTIONS,
    "SPANDIAL_OPERATION_KEYS": 2 * _OPERATIONS,
    "SPANDIAL_FIELDS": _FIELDS,
    "SPANDIAL_FIELD_SHARES": _FIELD_SHARES,
}
# enum callback of bpf/core/loop.h
SCANS = ("scan_head_callback", "scan_tracestate_callback")
_CALLBACKS = (
    *SCANS,
    "step_postgres",
    "step_mysql",
    "step_redis",
    "step_http2",
    "scan_fields_callback",
    "scan_huffman_callback",
    "scan_operation_callback",
    "obey_operation_callback",
)

# What says whether a socket blocks (bpf/core/sock.h): from the socket to its file's flags.
_OFFSETS = {
    "SPANDIAL_SK_SOCKET": ("sock", "sk_socket"),
    "SPANDIAL_SOCKET_FILE": ("socket", "file"),
    "SPANDIAL_FILE_FLAGS": ("file", "f_flags"),
}

# Since Linux 6.3 (commit 6e6eda44b939).
_TYPED = (("on_receive", "sock_recv_length"), ("on_send", "sock_send_length"))

# By the programs for OpenSSL.
_SHARED = ("targets", "counts", "losses", "entries", "serving", "operations", "fields", "field_shares")

CapturePath = Literal["socket", "sys_exit"]


@functools.cache
def _build(path: CapturePath) -> Build:
    defines = {"SPANDIAL_RING_PAGES": _RING_PAGES, **_DEFINES}
    if path == "socket":
        defines |= zip(_OFFSETS, member_offsets(_OFFSETS.values()) or ())
    else:
        defines["SPANDIAL_SYS_EXIT"] = 1
    return Build("capture.c", defines, ("rates",))


def is_compiled(cache: CompileCache, path: CapturePath | None) -> bool:
    """Whether the table and the capture by this path, or by the one that is tried first, need no compiler."""
    return cache.holds(RATES) and cache.holds(_build(path or "socket"))


def _tally(values: bytes, first: int, last: int, stride: int) -> int:
    """The sum of the values of all CPUs. The entries' counts come first in each."""
    return sum(int.from_bytes(values[at : at + TALLY_SIZE], "little") for at in range(first, last, stride))


class _Set(NamedTuple):
    rules: Sequence[OperationRule]  # that the kernel can apply
    entries: dict[bytes, int]  # of the longest-prefix map


_NOTHING = _Set((), {})


class Capture:
    """The attached capture programs.

    Args:
        rates: descriptor of the frozen table that they obey.
        force: a path to use without trying the others; None tries the socket tracepoints first.
        cache: where compiled sources are kept.
        on_loading: called when the kernel begins to verify the programs.

    Raises KernelUnavailable.
    """

    def __init__(
        self,
        rates: int,
        force: CapturePath | None = None,
        *,
        cache: CompileCache | None = None,
        on_loading: Callable[[], None] = lambda: None,
    ) -> None:
        self._tables, self._cache, self._on_loading = {"rates": rates}, cache, on_loading
        self.path, self._module, self._programs = self._attach(force)
        self._targets = TargetMap(self._module.map_fd("targets"))
        self._counts = Map(self._module.map_fd("counts"), abi.COUNTS.size, per_cpu=True)
        self._losses = Map(self._module.map_fd("losses"), 8, per_cpu=True)
        self._operations = Map(self._module.map_fd("operations"), 4)
        self._sets: dict[int, _Set] = {}
        self._stop = threading.Event()
        self._batch: list[bytes] = []
        self._on_records: Callable[[list[bytes]], None] | None = None
        self.reader = Supervised("spandial-entries", "reading of kept entries", self._read, still_s=_STILL_S)

    def attach(self) -> None:
        """Have the programs run, after `detach`. Raises KernelUnavailable."""
        self._targets.begin_attachment()
        for program in self._programs:
            self._module.attach(program, "sys_exit" if self.path == "sys_exit" else None)

    def detach(self) -> None:
        """No program runs any more: nobody pays anything."""
        self._module.detach()

    def _attach(self, force: CapturePath | None) -> tuple[CapturePath, Module, list[int]]:
        if force != "sys_exit":
            module = Module(_build("socket"), self._tables, cache=self._cache)
            self._on_loading()
            try:
                # Each keeps the kernel's verifier busy for most of a second, on a processor of its own if there is one.
                with ThreadPoolExecutor(len(_TYPED)) as loading:
                    receive, send = loading.map(
                        lambda each: module.load(each[0], callbacks=_CALLBACKS, typed_tracepoint=each[1]), _TYPED
                    )
                module.attach(receive)
                module.attach(send)
                return "socket", module, [receive, send]
            except KernelUnavailable:
                module.close()
                if force == "socket":
                    raise
        module = Module(_build("sys_exit"), self._tables, cache=self._cache)
        try:
            program = module.load("on_sys_exit", callbacks=_CALLBACKS)
            module.attach(program, "sys_exit")
        except KernelUnavailable:
            module.close()
            raise
        return "sys_exit", module, [program]

    def add_target(self, tgid: int, row: Row, answers: bool = False) -> None:
        """Watch a process from now on. A row of its own begins at zero.

        Args:
            answers: hand over the answers to its kept entries, too.
        """
        if row.number != abi.DEFAULT_ROW:
            self._counts[row.number] = bytes(abi.COUNTS.size)
        self._targets.put(tgid, row, answers)

    def move_target(self, tgid: int, row: Row) -> None:
        """A watched process has got a row of its own, which begins at zero. Raises KeyError."""
        self._counts[row.number] = bytes(abi.COUNTS.size)
        self._targets.change(tgid, row)

    def want_answers(self, tgid: int, row: Row, answers: bool) -> None:
        """Whether to hand over the answers to a watched process's kept entries."""
        self._targets.change(tgid, row, answers)

    def remove_target(self, tgid: int) -> None:
        self._targets.pop(tgid)

    def set_operations(self, operation_set: int, rules: Sequence[OperationRule]) -> list[OperationRule]:
        """Obey these rules by operation for targets whose row names the set (`abi.WORD_OPERATIONS`), for the kinds
        whose word has `Flag.OPERATIONS`. Another set of the same number is replaced; while it is, either's rules hold.

        A rule's row says by kind what holds for its operations; it must be written before, and be freed only when no
        set refers to it any more. A word without `Flag.VALID` leaves that kind to the target's own word.

        Args:
            operation_set: a number from 1 to 2**32 - 1.
            rules: the ones that win first.

        Returns the rules that the kernel cannot apply to what it reads itself (`operations.applies`).

        Raises OperationsFull where there is no room for them, and OSError where there is no memory; nothing is changed
        then.
        """
        applicable = [rule for rule in rules if applies(rule.pattern)]
        old, new = self._sets.get(operation_set, _NOTHING), _Set(applicable, entries(operation_set, applicable))
        taken = sum(len(known.entries) for known in self._sets.values()) - len(old.entries) + len(new.entries)
        if taken > _OPERATIONS:
            raise OperationsFull(
                f"rules by operation would take {taken} entries of the kernel's map, which has {_OPERATIONS}: "
                "their targets obey their other rules there. Use fewer rules, or rules that name no method."
            )
        try:
            for key, row in new.entries.items():
                if old.entries.get(key) != row:
                    self._operations[key] = row.to_bytes(4, sys.byteorder)
        except OSError:  # no memory: half a set would have rules win that should lose
            for key in new.entries.keys() - old.entries.keys():
                self._operations.pop(key)
            for key in new.entries.keys() & old.entries.keys():
                self._operations[key] = old.entries[key].to_bytes(4, sys.byteorder)
            raise
        for key in old.entries.keys() - new.entries.keys():
            self._operations.pop(key)
        self._sets[operation_set] = new
        return [rule for rule in rules if not applies(rule.pattern)]

    def drop_operations(self, operation_set: int) -> None:
        """Forget a set of rules. No target's row names it any more."""
        for key in self._sets.pop(operation_set, _NOTHING).entries:
            self._operations.pop(key)

    def find_operation(self, operation_set: int, kind: EntryKind, method: str, path: str) -> int | None:
        """The row of the rule of this set that wins for an operation, as the kernel would find it; None where there is
        none."""
        known = self._sets.get(operation_set)
        return find(known.rules, kind, method, path) if known is not None else None

    def counts(self, row: int) -> Counts:
        return Counts.summed(self._counts[row])

    def tallies(self, rows: Sequence[int]) -> list[int]:
        """What was counted of the entries of each of these rows (`spandial_agent.capture.tally`), all read together."""
        stride, size = self._counts.stride, self._counts.size
        if len(rows) < _FEW:
            return [_tally(b"".join(self._counts[row]), 0, size, stride) for row in rows]
        read = self._counts.first(max(rows) + 1)
        return [_tally(read, row * size, (row + 1) * size, stride) for row in rows]

    def losses(self) -> dict[str, int]:
        """How many entries or events were lost, by reason."""
        found = {
            reason.name.lower(): sum(int.from_bytes(value, "little") for value in self._losses[reason])
            for reason in Loss
        }
        # The kernel does not run a program that interrupts itself on the same CPU; it counts that.
        found["recursion"] = sum(program.recursion_misses for program in self.programs)
        return found

    @property
    def programs(self) -> list[ProgramInfo]:
        """What the kernel knows of the programs in use."""
        return [program_info(program) for program in self._programs]

    def tls(self) -> TlsCapture:
        """Programs for OpenSSL that count and decide as these do, in the same maps. Raises KernelUnavailable."""
        maps = {name: self._module.map_fd(name) for name in _SHARED}
        return TlsCapture(_DEFINES, _CALLBACKS, {**maps, **self._tables}, self._cache)

    def start(self, on_records: Callable[[list[bytes]], None]) -> None:
        """Read the ring buffer in a thread; `on_records` is called there, with what came in one go."""
        batch = self._batch = []

        def take(record: bytes) -> bool:
            batch.append(record)
            return len(batch) < _BATCH

        self._consume = self._module.open_ring_buffer("entries", take)
        self._on_records = on_records
        self.reader.start()

    def _read(self) -> None:
        full = False
        while not self._stop.wait(0 if full else _LOOK_S):
            self.reader.beat()
            self._consume()
            full = len(self._batch) == _BATCH
            if self._batch:
                self._hand_over()

    def _hand_over(self) -> None:
        assert self._on_records is not None
        records = self._batch.copy()
        self._batch.clear()  # first: what cannot be handed over is not handed over again and again
        self._on_records(records)

    def finish(self) -> None:
        """No program runs any more, and what they have left in the ring buffer is read before this returns."""
        self.detach()
        self._stop.set()
        self.reader.join()
        if self._on_records is None:
            return
        for _ in range(_LOOKS_AT_END):
            self._consume()
            if not self._batch:
                return
            self._hand_over()

    def close(self) -> None:
        self._stop.set()
        self.reader.join()
        self._module.close()
