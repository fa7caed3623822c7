"""How many spans an agent held when it ended, however it ended: the next agent tells it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import structlog

__all__ = ["Ledger"]

_log = structlog.get_logger("spandial.ledger")

_FORMAT = "%020d %020d\n"  # lost by all agents before, held by this one
_SIZE = 42


class Ledger:
    """A file of two numbers, rewritten in place: no disk that is full keeps it from being written again.

    What it cannot read or write it says once, and counts nothing then. Never raises.

    Attributes:
        before: spans that were lost when agents ended, all that used this file.
    """

    def __init__(self, path: Path) -> None:
        self.before = 0
        self._held = -1
        self._descriptor = -1
        self._path = path
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            self._descriptor = os.open(path, flags, 0o600)
            if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
                raise OSError(0, "is no file")
            self.before = _sum(os.pread(self._descriptor, _SIZE + 1, 0), path)
            self.note(0)
        except OSError as error:
            self._give_up(error)
        if self.before:
            _log.warning("spans were lost when agents ended", spans=self.before)

    def note(self, held: int) -> None:
        """So many spans would be lost if the agent ended now."""
        if held == self._held or self._descriptor < 0:
            return
        try:
            os.pwrite(self._descriptor, (_FORMAT % (self.before, held)).encode(), 0)
            self._held = held
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _give_up(self, error: OSError) -> None:
        _log.warning(
            "what spans are lost at the agent's end will not be told", file=str(self._path), reason=error.strerror
        )
        self.close()


def _sum(text: bytes, path: Path) -> int:
    fields = text.split()
    if not text or (len(text) == _SIZE and len(fields) == 2 and all(field.isdigit() for field in fields)):
        return sum(map(int, fields))
    _log.warning("what spans were lost at an agent's end cannot be read", file=str(path), received=text)
    return 0
