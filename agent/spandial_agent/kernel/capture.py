"""Capture: which processes the kernel watches, what it counted, and the entries it emits."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Literal, NamedTuple

from spandial import abi
from spandial.abi import EntryKind, Loss
from spandial_agent.errors import KernelUnavailable
from spandial_agent.kernel.libbpf import Map, ProgramInfo, program_info
from spandial_agent.kernel.loader import Module, release_compiler_memory
from spandial_agent.table import Row

__all__ = ["Capture", "Counts"]

_RING_PAGES = 1024  # 4 MiB: about 12,000 entries between two looks
_LOOK_S = 0.05
_BATCH = 2048  # records handed over at once

CapturePath = Literal["socket", "sys_exit"]


class Counts(NamedTuple):
    """What the kernel counted for a row; each tuple is indexed by `EntryKind`."""

    seen: tuple[int, ...]
    kept: tuple[int, ...]
    seen_traced: tuple[int, ...]
    kept_traced: tuple[int, ...]
    sent: tuple[int, ...]

    @classmethod
    def summed(cls, per_cpu: list[bytes]) -> Counts:
        sums = [sum(column) for column in zip(*(abi.COUNTS.unpack(value) for value in per_cpu))]
        kinds = len(EntryKind)
        return cls(*(tuple(sums[at : at + kinds]) for at in range(0, len(sums), kinds)))


class Capture:
    """The attached capture programs. The frozen table must exist already: the programs link it.

    Args:
        force: a path to use without trying the others; None tries the socket tracepoints first.

    Raises KernelUnavailable.
    """

    def __init__(self, force: CapturePath | None = None) -> None:
        self._module = Module("capture.c", {"SPANDIAL_RING_PAGES": _RING_PAGES})
        self.path, self._program = self._attach(force)
        self._targets = Map(self._module.map_fd("targets"), abi.TARGET.size)
        self._counts = Map(self._module.map_fd("counts"), abi.COUNTS.size, per_cpu=True)
        self._losses = Map(self._module.map_fd("losses"), 8, per_cpu=True)
        self._stop = threading.Event()
        release_compiler_memory()
        self._reader: threading.Thread | None = None

    def _attach(self, force: CapturePath | None) -> tuple[CapturePath, int]:
        if force != "sys_exit":
            try:
                program = self._module.load("on_socket")
                # Since Linux 6.3 (commit 6e6eda44b939).
                self._module.attach("sock_recv_length", "on_socket")
                self._module.attach("sock_send_length", "on_socket")
                return "socket", program
            except KernelUnavailable:
                self._module.detach()
                if force == "socket":
                    raise
        program = self._module.load("on_sys_exit")
        self._module.attach("sys_exit", "on_sys_exit")
        return "sys_exit", program

    def add_target(self, tgid: int, row: Row) -> None:
        """Watch a process from now on. A row of its own begins at zero."""
        if row.number != abi.DEFAULT_ROW:
            self._counts[row.number] = bytes(abi.COUNTS.size)
        self._targets[tgid] = abi.TARGET.pack(row.number, row.epoch)

    def remove_target(self, tgid: int) -> None:
        self._targets.pop(tgid)

    def counts(self, row: int) -> Counts:
        return Counts.summed(self._counts[row])

    def losses(self) -> dict[str, int]:
        """How many entries or events were lost, by reason."""
        found = {
            reason.name.lower(): sum(int.from_bytes(value, "little") for value in self._losses[reason])
            for reason in Loss
        }
        # The kernel does not run a program that interrupts itself on the same CPU; it counts that.
        found["recursion"] = self.program.recursion_misses
        return found

    @property
    def program(self) -> ProgramInfo:
        """What the kernel knows of the program in use."""
        return program_info(self._program)

    def start(self, on_records: Callable[[list[bytes]], None]) -> None:
        """Read the ring buffer in a thread; `on_records` is called there, with what came in one go."""
        batch: list[bytes] = []

        def take(record: bytes) -> bool:
            batch.append(record)
            return len(batch) < _BATCH

        consume = self._module.open_ring_buffer("entries", take)

        def read() -> None:
            full = False
            while not self._stop.wait(0 if full else _LOOK_S):
                consume()
                full = len(batch) == _BATCH
                if batch:
                    on_records(batch.copy())
                    batch.clear()

        self._reader = threading.Thread(target=read, name="spandial-entries", daemon=True)
        self._reader.start()

    def close(self) -> None:
        self._stop.set()
        if self._reader is not None:
            self._reader.join()
        self._module.close()
