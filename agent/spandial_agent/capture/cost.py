"""What the capture programs cost, by samples, and when that is too much."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import structlog

from spandial_agent.capture.running import RunningCapture
from spandial_agent.kernel.libbpf import ProgramInfo
from spandial_agent.kernel.run_time import run_time_taken

__all__ = ["CostLimit", "keep_within"]

_log = structlog.get_logger("spandial.capture")

_INTERVAL_S = 5.0  # between two samples
_WINDOW_S = 0.1  # while it is taken, each run of a program costs some 30 ns more
_TIMES = 3  # in a row: a burst is none
_PAUSES_S = (60.0, 300.0, 1800.0)  # until it is tried again; the last one from then on
_CALM = 60  # samples below the limit, after which the first pause is the next


class CostLimit:
    """Says when samples of the cost are above a limit again and again. Pure.

    Args:
        processors: how many processors' time the programs may take together: 0.5 is half of one.
    """

    def __init__(self, processors: float) -> None:
        self.processors = processors
        self._above = self._below = self._downs = 0

    def take(self, cost: float) -> float | None:
        """A sample, in processors. Returns for how many seconds the programs are to be detached, if they are."""
        if cost <= self.processors:
            self._above = 0
            self._below += 1
            if self._below >= _CALM:
                self._downs = 0
            return None
        self._below = 0
        self._above += 1
        if self._above < _TIMES:
            return None
        self._above = 0
        pause = _PAUSES_S[min(self._downs, len(_PAUSES_S) - 1)]
        self._downs += 1
        return pause


async def keep_within(
    limit: CostLimit, capture: RunningCapture, stop: Callable[[str], None], start: Callable[[], None]
) -> None:
    """Look at what capture costs until cancelled.

    Args:
        stop: detaches the programs; is handed why.
        start: attaches them again, unless somebody else wants them off.

    Raises OSError where the kernel does not say what they cost.
    """
    while True:
        await asyncio.sleep(_INTERVAL_S)
        if not capture.running:
            continue
        cost = await _sample(capture.programs)
        pause = limit.take(cost)
        if pause is None or not capture.running:
            continue
        why = (
            f"capture took {cost:.2g} processors, more than SPANDIAL_CAPTURE_CPU_LIMIT ({limit.processors:g}): it is "
            f"off, and tried again after {pause:g} s, or when somebody runs 'spandial on'."
        )
        _log.error("capture is off", reason=why)
        stop(why)
        while not capture.running:
            try:
                await asyncio.wait_for(capture.started.wait(), pause)
            except TimeoutError:
                start()


async def _sample(programs: Callable[[], Sequence[ProgramInfo]]) -> float:
    """How many processors' time the programs take now, all processors together. Raises OSError where the kernel does
    not say."""
    with run_time_taken():
        before, begun = _run_time_ns(programs()), time.monotonic_ns()
        await asyncio.sleep(_WINDOW_S)
        after, ended = _run_time_ns(programs()), time.monotonic_ns()
    return max(0, after - before) / (ended - begun)  # fewer programs than before: a library's were made meanwhile


def _run_time_ns(programs: Sequence[ProgramInfo]) -> int:
    return sum(program.run_time_ns for program in programs)
