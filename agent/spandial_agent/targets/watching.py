"""The kernel side of targets, where there is one: which processes it watches, and what it has counted of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import structlog

from spandial_agent.capture.capture import Capture
from spandial_agent.capture.tally import by_kind
from spandial_agent.targets.in_flight import InFlight
from spandial_agent.targets.rows import Turned
from spandial_agent.targets.target import COMPARED, REGISTERED, Target

__all__ = ["Watching"]

_log = structlog.get_logger("spandial.targets")


class Watching:
    """Has the kernel side follow what targets do. Without one, it does nothing.

    Attributes:
        answers: whether the kernel shall emit the answers to the kept entries of processes without a hook, too.
        unwatched: targets for which the kernel side had no room.
    """

    def __init__(self, capture: Capture | None) -> None:
        self.answers = False
        self.unwatched = 0
        self._capture = capture
        self._waiting: set[int] = set()  # pids of those for whom there was no room

    def watch(self, target: Target) -> None:
        if self._capture is None:
            return
        try:
            self._watch(target)
        except OSError as error:  # its map is full: the hooks of further processes obey all the same
            self.unwatched += 1
            self._waiting.add(target.pid)
            _log.warning("the kernel does not watch a process", pid=target.pid, error=str(error))

    def find_room(self, targets: Mapping[int, Target]) -> Iterator[Target]:
        """Watch those for whom there was no room, if there is some now: each of them, as soon as it is watched."""
        for pid in sorted(self._waiting):
            target = targets.get(pid)
            try:
                if target is not None and not target.watched:
                    self._watch(target)
                    yield target
            except OSError:
                break
            self._waiting.discard(pid)

    def _watch(self, target: Target) -> None:
        """Raises OSError where there is no room."""
        if self._capture is not None:
            self._capture.add_target(target.pid, target.row, self.answers and target.why != REGISTERED)
            target.watched = True

    def move(self, target: Target) -> None:
        """It has another row."""
        if self._capture is not None and target.watched:
            self._capture.move_target(target.pid, target.row)
        else:
            self.watch(target)

    def hook(self, target: Target) -> None:
        """It gets a hook, whose counts are compared from now on."""
        if not target.hooked and self._capture is not None and target.watched:
            target.base = self._capture.counts(target.row.number)
            target.in_flight = {kind: InFlight() for kind in COMPARED}
            self._capture.want_answers(target.pid, target.row, False)

    def forget(self, pid: int) -> None:
        self._waiting.discard(pid)
        if self._capture is not None:
            self._capture.remove_target(pid)

    def turned(self, turned: Sequence[Turned]) -> None:
        """Rates have turned: what was in flight then, either side may have counted."""
        if self._capture is None:
            return
        counting = [one for one in turned if one.target.pages and one.target.counts_alone]
        for (target, pages, certain), tally in zip(
            counting, self._capture.tallies([one.target.row.number for one in counting])
        ):
            seen = by_kind(tally).seen_traced
            base = target.base.seen_traced if target.base is not None else (0,) * len(seen)
            for kind, reported in pages.items():
                target.in_flight[kind].turn(seen[kind] - base[kind], reported, certain=certain)

    def lease_ended(self, targets: Sequence[Target]) -> None:
        """All obeyed their fallback words since the lease ended, each side from a moment of its own, and now obey
        their rules again."""
        self.turned(
            [
                Turned(target, {kind: [page.traced_before(kind) for page in target.pages] for kind in COMPARED}, False)
                for target in targets
            ]
        )
