"""How many requests were between kernel and hook when their rate turned: each decides such a request by another rate.
Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from spandial_agent.processes.counter_page import PageCount

__all__ = ["InFlight"]


class _Turn(NamedTuple):
    seen: int
    pages: tuple[PageCount, ...]
    certain: bool


class InFlight:
    """Counts such requests of one process and kind of entry, never too few.

    Kernel and hook count the same requests, in the same order but for those in flight. What the kernel had seen when
    the turn was over, less what the hook had decided when it met the new word, were in flight at most. Where that
    cannot be told (two turns between two reports of the hook, a turn back before the hook met the word between, rules
    by operation), what the hook had last reported before the turn stands in for it.
    """

    def __init__(self) -> None:
        self._settled = 0
        self._settled_to = 0  # of the requests that the kernel has seen: none is counted twice
        self._open: _Turn | None = None
        self._last: _Turn | None = None

    def turn(self, seen: int, pages: Sequence[PageCount], *, certain: bool) -> None:
        """The rate has just turned.

        Args:
            seen: requests with a trace context that the kernel has seen since the hook counts.
            pages: what the process's hooks last reported.
            certain: the hook counts how often it meets another word for these requests.
        """
        self._settle(pages)
        certain = certain and self._has_met(pages)
        self._last = _Turn(seen, tuple(pages), certain)
        if self._open is not None:  # of turns that cannot be told apart, all requests since the first are in question
            self._open = _Turn(seen, self._open.pages, False)
        elif seen > sum(page.decided for page in pages):
            self._open = _Turn(seen, tuple(pages), certain)

    def at_most(self, pages: Sequence[PageCount]) -> int:
        """The count, by what the hooks report now."""
        self._settle(pages)
        return self._settled + (self._count(self._open, pages)[0] if self._open is not None else 0)

    def _has_met(self, pages: Sequence[PageCount]) -> bool:
        """Whether the hooks are known to have met the word of the last turn: a hook that has not meets nothing when the
        rate turns back to the one before."""
        last = self._last
        if last is None:
            return True
        same = last.certain and len(pages) == len(last.pages)
        if same and all(now.met - then.met == 1 for now, then in zip(pages, last.pages)):
            return True
        # Whoever met a word when he had decided all that the kernel had seen until the turn met it after the turn.
        return len(pages) == 1 and pages[0].before >= max(last.seen, 1)

    def _settle(self, pages: Sequence[PageCount]) -> None:
        if self._open is None:
            return
        count, final = self._count(self._open, pages)
        if final:
            self._settled += count
            if count:
                self._settled_to = self._open.seen
            self._open = None

    def _count(self, turn: _Turn, pages: Sequence[PageCount]) -> tuple[int, bool]:
        """Requests in flight at most, and whether that is the last word."""
        loose = self._beyond(turn, sum(page.decided for page in turn.pages))
        steps = [now.met - then.met for now, then in zip(pages, turn.pages)]
        told = len(pages) == len(turn.pages) and all(page.met for page in pages)
        if not turn.certain or not told or not all(0 <= step <= 1 for step in steps):
            return loose, True
        # Who has not met the new word has decided nothing by it.
        decided = sum(page.before if step else page.decided for page, step in zip(pages, steps))
        count = min(loose, self._beyond(turn, decided))
        return count, count == 0 or all(steps)

    def _beyond(self, turn: _Turn, decided: int) -> int:
        return max(0, turn.seen - max(decided, self._settled_to))
