"""How many spans agents held when they ended, however they ended: the next agent tells it."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import structlog

from spandial_agent.supervised import Supervised

__all__ = ["Ledger"]

_log = structlog.get_logger("spandial.ledger")

_FORMAT = "%020d %020d %020d %020d\n"  # lost by all agents before, held by this one, agents killed, whether it runs
_SIZE = 84
_MOST = 10**18  # so that sums have 20 digits
_EVERY_S = 0.05
_STILL_S = 30.0
_END_S = 0.2


class Ledger:
    """A file of four numbers, rewritten in place: no disk that is full keeps it from being written again, and what is
    written is there after SIGKILL. A thread of its own writes: a disk that is slow holds up nobody.

    What it cannot read or write it says once, and counts nothing then. Never raises.

    Attributes:
        before: spans that agents held when they ended, all that used this file; of one that was killed, when it last
            wrote it down.
        killed: how many of those agents did not come to their end. What each was handed over after it last wrote
            nobody knows, and some of what it held may have arrived.
        thread: what writes.
    """

    def __init__(self, path: Path) -> None:
        self.before = self.killed = 0
        self._held = -1
        self._descriptor = -1
        self._path = path
        self._count: Callable[[], int] = lambda: 0
        self._stop = False
        self._due = threading.Event()
        self.thread = Supervised("spandial-ledger", "noting of spans that are held", self._run, still_s=_STILL_S)
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            self._descriptor = os.open(path, flags, 0o600)
            if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
                raise OSError(0, "is no file")
            before, held, killed, runs = _numbers(os.pread(self._descriptor, _SIZE + 1, 0), path)
            self.before, self.killed = before + held, killed + (runs > 0)
            if runs:
                _log.warning("the agent before was killed", spans_held=held, since="it last wrote it down")
            self.note(0)
            os.ftruncate(self._descriptor, _SIZE)  # of what was longer
        except OSError as error:
            self._give_up(error)
        if self.before:
            _log.warning("spans were lost when agents ended", spans=self.before, killed=self.killed)

    def keep(self, count: Callable[[], int]) -> None:
        """Write down from now on how many spans would be lost if the agent ended now."""
        self._count = count
        if self._descriptor >= 0:
            self.thread.start()

    def note_soon(self) -> None:
        """There are more. Waits for nothing."""
        self._due.set()

    def note(self, held: int, runs: bool = True) -> None:
        """Write down how many spans are held now."""
        if (held == self._held and runs) or self._descriptor < 0:
            return
        try:
            os.pwrite(self._descriptor, (_FORMAT % (self.before, max(held, 0), self.killed, runs)).encode(), 0)
            self._held = held
        except OSError as error:
            self._give_up(error)

    def close(self, lost: int) -> None:
        """So many spans were lost, and no more will be."""
        self._stop = True
        self._due.set()
        self.thread.join(_END_S)
        if not self.thread.is_alive():  # else the disk hangs
            self.note(lost, runs=False)
            self._release()

    def _run(self) -> None:
        while not self._stop:
            self.thread.beat()
            self.note(self._count())
            self._due.wait(_EVERY_S)
            self._due.clear()

    def _give_up(self, error: OSError) -> None:
        _log.warning(
            "what spans are lost at the agent's end will not be told", file=str(self._path), reason=error.strerror
        )
        self._release()

    def _release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _numbers(text: bytes, path: Path) -> list[int]:
    fields = text.split()
    if len(text) == _SIZE and len(fields) == 4 and all(field.isdigit() for field in fields):
        return [min(int(field), _MOST) for field in fields]
    if text:
        _log.warning("what spans were lost at an agent's end cannot be read", file=str(path), received=text)
    return [0, 0, 0, 0]
