"""The counter page of a hooked process: the process writes it, so nothing in it is believed as it stands."""

from __future__ import annotations

import fcntl
import mmap
import os
import time
from collections.abc import Callable
from typing import NamedTuple

from spandial import abi
from spandial.abi import EntryKind

__all__ = ["CounterPage", "HookVersion", "PageCount"]

# Counts that grow past this are no counts: a century of a million decisions a second.
_PLAUSIBLE = 1 << 52
# A processor makes fewer decisions a second, in whatever language.
_DECISIONS_PER_SECOND = 2_000_000 * (os.cpu_count() or 1)
_AT_ONCE = 100_000


class PageCount(NamedTuple):
    """What a counter page says of one kind of entry.

    Attributes:
        decided: requests with a trace context that its hook has decided.
        met: how often the hook has met another rate word than before; 0 from a hook that does not tell.
        before: how many of `decided` came before it met the last one.
    """

    decided: int
    met: int
    before: int


class HookVersion(NamedTuple):
    """Which hook has a counter page, as it says itself: its ABI version, and its spandial's; empty from older ones."""

    abi: int
    spandial: str


class CounterPage:
    """A page of shared memory to hand out. Raises OSError where there are no descriptors left for it.

    Args:
        clock: seconds.

    Attributes:
        hook: who has it.
        implausible: how often a count went backwards, or grew faster than processors decide, and was ignored.
    """

    def __init__(
        self, hook: HookVersion = HookVersion(abi.ABI, ""), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.hook = hook
        self.descriptor = os.memfd_create("spandial-counts", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.descriptor, abi.PAGE_SIZE)
            os.fchmod(self.descriptor, 0o600)  # for the process that is handed it, and nobody who could open it anew
            # The process must not be able to shorten the page: reading past its end would kill the agent (SIGBUS).
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, seals)
            if fcntl.fcntl(self.descriptor, fcntl.F_GET_SEALS) & seals != seals:
                raise OSError("the kernel has not sealed the counter page")
            self._map = mmap.mmap(self.descriptor, abi.PAGE_SIZE, mmap.MAP_SHARED, mmap.PROT_READ)
        except OSError:
            os.close(self.descriptor)
            raise
        self._words = memoryview(self._map).cast("Q")
        self._found = [0] * abi.PAGE_COUNT_WORDS  # what the page said
        self._last = [0] * abi.PAGE_COUNT_WORDS  # what of it is believed
        self._clock = clock
        self._read_before = self._read_last = clock()
        self.implausible = 0

    @property
    def published(self) -> int:
        """The last publish request that the process says it has answered."""
        return self._words[abi.PAGE_PUBLISHED]

    def read(self) -> list[int]:
        """The 32 counts; each never less than it was before, and never more than there was time for. What comes beyond
        that is left out, and counting goes on from there."""
        found = self._words[abi.PAGE_COUNTS : abi.PAGE_COUNTS + abi.PAGE_COUNT_WORDS].tolist()
        # The process may have been late to publish at the last read.
        seconds = self._clock() - self._read_before
        self._read_before, self._read_last = self._read_last, self._clock()
        if found == self._found:
            return list(self._last)
        most = _AT_ONCE + seconds * _DECISIONS_PER_SECOND
        for index, (count, before) in enumerate(zip(found, self._found)):
            if count == before:
                continue
            if before < count < _PLAUSIBLE:
                self._found[index] = count
                if count - before <= most:
                    self._last[index] += count - before
                    continue
            self.implausible += 1
        return list(self._last)

    def traced(self, kind: EntryKind) -> PageCount:
        """The spans with a remote parent of one kind of entry. Nonsense in it misleads about this process alone."""
        first = abi.PAGE_COUNTS + kind * abi.PAGE_KIND_STRIDE + abi.PAGE_REMOTE
        turn = abi.PAGE_TURNS + 2 * kind
        return PageCount(sum(self._words[first : first + 2]), *self._words[turn : turn + 2])

    def traced_before(self, kind: EntryKind) -> PageCount:
        """The same as it was when the counts were last read."""
        first = kind * abi.PAGE_KIND_STRIDE + abi.PAGE_REMOTE
        return PageCount(sum(self._last[first : first + 2]), 0, 0)

    def close(self) -> None:
        self._words.release()
        self._map.close()
        os.close(self.descriptor)
