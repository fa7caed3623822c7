"""What the entries of each target counted since the last look: the kernel knows of some, the hook of others."""

from __future__ import annotations

from collections.abc import Iterable

from spandial import abi
from spandial.abi import EntryKind
from spandial_agent.capture.capture import Capture
from spandial_agent.capture.tally import KindCounts, tally_of
from spandial_agent.processes.counter_page import CounterPage
from spandial_agent.table.rates import Row
from spandial_agent.targets.target import Target

__all__ = ["Tallies"]


def _mask(*kinds: EntryKind) -> int:
    every = (1 << 64) - 1
    return tally_of(KindCounts(*[tuple(every if kind in kinds else 0 for kind in EntryKind)] * 4))


# In a process with a hook, the kernel sees neither internal spans nor which statements have a local parent.
_ENTERS = _mask(EntryKind.HTTP, EntryKind.GRPC)
_STAYS = _mask(EntryKind.INTERNAL, EntryKind.DB)


def _page_tally(page: CounterPage) -> int:
    """A hook's decisions for spans that entered the process: without a parent, or with a remote one."""
    counts = page.read()
    seen, kept, traced, traced_kept = [], [], [], []
    for first in range(0, len(EntryKind) * abi.PAGE_KIND_STRIDE, abi.PAGE_KIND_STRIDE):
        root_dropped, root_kept, remote_dropped, remote_kept = counts[first : first + 4]
        seen.append(root_dropped + root_kept + remote_dropped + remote_kept)
        kept.append(root_kept + remote_kept)
        traced.append(remote_dropped + remote_kept)
        traced_kept.append(remote_kept)
    return tally_of(KindCounts(tuple(seen), tuple(kept), tuple(traced), tuple(traced_kept)))


class Tallies:
    """Looks at counts again and again, and tells what has come since.

    Args:
        capture: the kernel side, if there is one.
    """

    def __init__(self, capture: Capture | None) -> None:
        self._capture = capture
        self._kernel: dict[Row, int] = {}
        self._pages: dict[CounterPage, int] = {}

    def look(self, targets: Iterable[Target], *, first: bool) -> list[tuple[Target, int]]:
        """The targets of which anything was counted since the last look, and what.

        Args:
            targets: those with a row of their own, and a kernel or a hook that counts.
            first: there was no look just before: this one only remembers.
        """
        targets = list(targets)
        watched = [target for target in targets if target.watched] if self._capture is not None else []
        found: dict[int, int] = {}
        if self._capture is not None:
            kernel = {}
            tallies = self._capture.tallies([target.row.number for target in watched])
            for target, tally in zip(watched, tallies):
                kernel[target.row] = tally
                since = tally - self._kernel.get(target.row, 0)  # the kernel counts from 0 for a new row
                if since:
                    found[target.pid] = since & _ENTERS if target.pages else since
            self._kernel = kernel
        pages = {}
        for target in targets:
            for page in target.pages:
                tally = pages[page] = _page_tally(page)
                since = tally - self._pages.get(page, 0)
                if since:
                    found[target.pid] = found.get(target.pid, 0) + (since & _STAYS if target.watched else since)
        self._pages = pages
        return [] if first else [(target, found[target.pid]) for target in targets if found.get(target.pid)]
