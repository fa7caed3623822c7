"""The lease: readers obey the rates as long as the agent lives."""

from __future__ import annotations

import threading
import time

from spandial_agent.table.rates import RateTable

__all__ = ["LeaseKeeper"]

_SILENT_S = 30.0  # of the event loop: an agent that stands still for longer controls nothing


class LeaseKeeper:
    """Renews the lease in a thread of its own: the event loop may be late. It does so only while the loop lives, which
    says so by `beat`.

    Args:
        seconds: of the lease.
        silent_s: for how long the loop may say nothing.
    """

    def __init__(self, table: RateTable, seconds: float, silent_s: float = _SILENT_S) -> None:
        self._table = table
        self._seconds = seconds
        self._silent_s = silent_s
        self._ended = self._paused = False
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spandial-lease", daemon=True)

    def start(self) -> None:
        self.beat()
        self._renew()
        self._thread.start()

    def beat(self) -> bool:
        """The event loop lives; whether the lease had ended since it last said so.

        Raises RuntimeError where the thread has died: nobody would renew the lease.
        """
        self._beaten = time.monotonic()
        if self._thread.ident is not None and not self._stop.is_set():
            if not self._thread.is_alive():
                raise RuntimeError("the thread that renews the lease has ended")
            self._renew()  # nobody obeys the rates again before it is known that the lease had ended
        with self._lock:
            ended, self._ended = self._ended, False
        return ended

    def pause(self) -> None:
        """End the lease, and renew nothing until `resume`."""
        with self._lock:
            self._paused = True
            self._table.end_lease()

    def resume(self) -> None:
        """Renew the lease again, at once."""
        with self._lock:
            self._paused = False
        self._renew()

    def stop(self) -> None:
        """Renew nothing any more; the thread has ended when this returns."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._seconds / 4):
            if time.monotonic() - self._beaten <= self._silent_s:
                self._renew()

    def _renew(self) -> None:
        with self._lock:
            if not self._paused and self._table.renew_lease(self._seconds):
                self._ended = True
