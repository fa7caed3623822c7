"""The kernel's map of the processes that are watched."""

from __future__ import annotations

from spandial import abi
from spandial_agent.kernel.libbpf import Map
from spandial_agent.table.rates import Row

__all__ = ["TargetMap"]


class TargetMap:
    """Targets by tgid, as the programs find them.

    Args:
        fd: descriptor of the map.
    """

    def __init__(self, fd: int) -> None:
        self._map = Map(fd, abi.TARGET.size)
        self._known: dict[int, tuple[Row, bool]] = {}
        self._attachment = 0

    def put(self, tgid: int, row: Row, answers: bool) -> None:
        """Watch a process from now on.

        Args:
            answers: hand over the answers to its kept entries, too.

        Raises OSError where there is no room.
        """
        self._write(tgid, row, answers)
        self._known[tgid] = row, answers

    def change(self, tgid: int, row: Row, answers: bool | None = None) -> None:
        """A watched process has another row, or another wish for answers (None: the same). Raises KeyError."""
        _, before = self._known[tgid]
        _row, _epoch, _answers, follows, _attachment = abi.TARGET.unpack(self._map[tgid][0])
        answers = before if answers is None else answers
        self._write(tgid, row, answers, follows=bool(follows))
        self._known[tgid] = row, answers

    def pop(self, tgid: int) -> None:
        self._known.pop(tgid, None)
        self._map.pop(tgid)

    def begin_attachment(self) -> None:
        """What the programs know of connections is out of date: bytes passed unseen. The programs are detached."""
        self._attachment += 1
        for tgid, (row, answers) in self._known.items():
            self._write(tgid, row, answers)

    def _write(self, tgid: int, row: Row, answers: bool, *, follows: bool = False) -> None:
        self._map[tgid] = abi.TARGET.pack(row.number, row.epoch, answers, follows, self._attachment)
