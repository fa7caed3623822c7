"""Threads and tasks that end or stand still although they should not: started again, and said."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog

from spandial_agent.text import text_of

__all__ = ["Supervised", "Watched"]

_log = structlog.get_logger("spandial.supervised")

_PAUSES_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)  # before it is started again; the last one from then on
_TOLD_S = 300.0  # a failure is told for so long after it


class Watched(Protocol):
    """What may have trouble."""

    @property
    def trouble(self) -> str:
        """What is wrong, in one sentence; empty where nothing is."""
        ...


class Supervised:
    """Work that goes on until it is told to end: it returns then, and not before.

    Work that raises is started again after a pause: it must be fit for that. Use `start` for a thread of its own, or
    `run_task` in a task.

    Args:
        name: of the thread.
        what: it does, for a person: "export of spans".
        work: what the thread does; may be called again after it raised.
        at_end: called once in the thread when nothing is started any more.
        still_s: work that calls `beat` less often than this stands still; None: it may wait for as long as it likes.
    """

    def __init__(
        self,
        name: str,
        what: str,
        work: Callable[[], None] | None = None,
        *,
        at_end: Callable[[], None] | None = None,
        still_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._what = what
        self._work = work
        self._at_end = at_end
        self._still_s = still_s
        self._clock = clock
        self._ending = threading.Event()
        self._running = False
        self._failures = 0
        self._failed_at = 0.0
        self._reason = ""
        self._beat = clock()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self.beat()
        self._running = True
        self._thread.start()

    def beat(self) -> None:
        """The work goes on. From the work itself, each time around."""
        self._beat = self._clock()

    def join(self, timeout: float | None = None) -> None:
        """Wait until the work has ended, which it has been told; it is not started again."""
        self._ending.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def trouble(self) -> str:
        """What is wrong, in one sentence; empty where nothing is."""
        now = self._clock()
        if self._failures and now - self._failed_at < _TOLD_S:
            times = "once" if self._failures == 1 else f"{self._failures} times"
            return f"the {self._what} ({self.name}) failed {times} and was started again: {self._reason}."
        if not self._running or self._ending.is_set():
            return ""
        if self._thread.ident is not None and not self._thread.is_alive():
            return f"the {self._what} ({self.name}) has ended: restart the agent."
        if self._still_s is not None and now - self._beat > self._still_s:
            return f"the {self._what} ({self.name}) has stood still for {now - self._beat:.0f} s: see the agent's log."
        return ""

    async def run_task(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do the work in this task, again and again where it raises, until it returns or is cancelled."""
        self.beat()
        self._running = True
        while True:
            try:
                await work()
                self._running = False
                return
            except Exception as error:
                pause = self._failed(error)
            await asyncio.sleep(pause)
            self.beat()

    def _run(self) -> None:
        assert self._work is not None
        try:
            while True:
                try:
                    self._work()
                    self._running = False
                    return
                except Exception as error:
                    pause = self._failed(error)
                if self._ending.wait(pause):
                    return
                self.beat()
        finally:
            if self._at_end is not None:
                self._at_end()

    def _failed(self, error: Exception) -> float:
        """Take note of a failure. Returns the pause before the next start."""
        now = self._clock()
        if now - self._failed_at >= _TOLD_S:
            self._failures = 0
        self._failures += 1
        self._failed_at = now
        self._reason = text_of(f"{type(error).__name__}: {error}")
        pause = _PAUSES_S[min(self._failures, len(_PAUSES_S)) - 1]
        _log.error("started again", what=self._what, thread=self.name, failures=self._failures, exc_info=error)
        return pause
