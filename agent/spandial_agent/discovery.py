"""Which processes come and go: a look at /proc at the start, then the kernel's process events."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Iterator
from typing import Any, Literal

import structlog

from spandial_agent.processes import all_pids, read_process
from spandial_agent.targets import Target, Targets

__all__ = ["Discovery"]

_log = structlog.get_logger("spandial.discovery")

_RESCAN_S = 30.0  # in case an event was lost
_SCAN_ONLY_S = 2.0  # where there are no events


class Discovery:
    """Adds the processes that name a service, and removes those that end.

    Attributes:
        how: "events", or "scan" where the kernel hands out none (that takes CAP_NET_ADMIN in the first namespaces).
        lost: how often the kernel dropped events because they were not read in time; each is followed by a scan.
    """

    def __init__(self, targets: Targets) -> None:
        self.how: Literal["events", "scan"] = "scan"
        self.reason = ""
        self.lost = 0
        self._targets = targets
        self._pidfds: dict[int, int] = {}

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._targets.on_added = self._watch
        self._targets.on_removed = self._unwatch
        self._listen()
        self.scan()
        self._task = self._loop.create_task(self._rescan())

    def scan(self) -> None:
        """Look at every process there is."""
        present = set()
        for pid in all_pids():
            present.add(pid)
            self._look_at(pid)
        for target in list(self._targets):
            if target.pid not in present:
                self._targets.remove(target.pid)

    def close(self) -> None:
        """Watch nothing any more. The targets keep their rows: whoever reads them does so until the lease ends."""
        self._task.cancel()
        for target in self._targets:
            self._unwatch(target)

    def _watch(self, target: Target) -> None:
        """Learn of a target's end from its pidfd, which cannot be lost as an event can."""
        with contextlib.suppress(OSError):  # it has ended already, or there are too many: the next scan finds it gone
            pidfd = self._pidfds[target.pid] = os.pidfd_open(target.pid)
            self._loop.add_reader(pidfd, self._targets.remove, target.pid)

    def _unwatch(self, target: Target) -> None:
        pidfd = self._pidfds.pop(target.pid, None)
        if pidfd is not None:
            self._loop.remove_reader(pidfd)
            os.close(pidfd)

    def _look_at(self, pid: int, parent_pid: int = 0) -> None:
        process = read_process(pid)
        if process is not None:
            self._targets.discover(process, self._targets.get(parent_pid))

    async def _rescan(self) -> None:
        while True:
            await asyncio.sleep(_RESCAN_S if self.how == "events" else _SCAN_ONLY_S)
            try:
                self.scan()
            except OSError as error:  # out of descriptors: the next scan may find some
                _log.warning("processes could not be scanned", error=str(error))

    def _listen(self) -> None:
        """Start the reader, and wait until it knows whether there are events."""
        ready = threading.Event()
        threading.Thread(target=self._read, args=(ready,), name="spandial-processes", daemon=True).start()
        ready.wait(5)
        if self.reason:
            _log.warning(self.reason)

    def _read(self, ready: threading.Event) -> None:
        # pyroute2 runs an event loop of its own in the thread that makes the socket.
        try:
            from pyroute2 import ProcEventSocket

            events = ProcEventSocket()
            events.bind()
            events.control(listen=True)
            self.how = "events"
        except Exception as error:  # pyroute2 has exceptions of its own for what the kernel refuses
            self.reason = f"the kernel hands out no process events ({error}): new processes are found by scanning."
            return
        finally:
            ready.set()
        while True:
            try:
                came = [(pid, parent) for message in events.get() for pid, parent in _new_processes(message)]
            except Exception as error:  # ENOBUFS: the kernel dropped events
                _log.warning("process events were lost", error=str(error))
                came = None
                time.sleep(0.1)
            try:
                if came is None or came:
                    self._loop.call_soon_threadsafe(self._handle, came)
            except RuntimeError:  # the loop is closed
                return

    def _handle(self, came: list[tuple[int, int]] | None) -> None:
        if came is None:
            self.lost += 1
            self.scan()
            return
        for pid, parent in came:
            # A fork matters if it is a target's: its labels go on to the child. An exec shows new ones.
            if not parent or self._targets.get(parent) is not None:
                self._look_at(pid, parent)


def _new_processes(message: dict[str, Any]) -> Iterator[tuple[int, int]]:
    """The process of an exec or a fork, with its parent in case of a fork; new threads are none."""
    if message["event"] == "PROC_EVENT_EXEC":
        yield message["process_tgid"], 0
    elif message["event"] == "PROC_EVENT_FORK" and message["child_pid"] == message["child_tgid"]:
        yield message["child_tgid"], message["parent_tgid"]
