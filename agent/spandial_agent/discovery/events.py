"""The kernel's process events: which processes fork and which call exec."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pyroute2

from spandial_agent.supervised import Supervised

__all__ = ["ProcessEvents", "new_processes"]

_Came = list[tuple[int, int]]


class ProcessEvents:
    """Reads them in a thread of its own. They take CAP_NET_ADMIN in the first namespaces.

    Attributes:
        reason: why there are none; empty where there are.
        lost_by: how events were last lost.
    """

    def __init__(self) -> None:
        self.reason = "nobody has asked the kernel for process events."
        self.lost_by = ""
        self.reader = Supervised("spandial-processes", "reading of process events", self._read)

    def listen(self, hand_over: Callable[[_Came | None], object]) -> None:
        """Start the reader, and wait until it knows whether there are events.

        Args:
            hand_over: called in the reader's thread with pids, each with that of the parent where it was forked, or
                None where the kernel dropped events because they were not read in time. RuntimeError ends the reader.
        """
        self._hand_over = hand_over
        self._ready = threading.Event()
        self.reader.start()
        self._ready.wait(5)

    def _read(self) -> None:
        # pyroute2 runs an event loop of its own in the thread that makes the socket.
        try:
            events = pyroute2.ProcEventSocket()
            events.bind()
            events.control(listen=True)
            self.reason = ""
        except Exception as error:  # pyroute2 has exceptions of its own for what the kernel refuses
            self.reason = f"the kernel hands out no process events ({error}): new processes are found by scanning."
            return
        finally:
            self._ready.set()
        while True:
            came: _Came | None
            try:
                came = [found for message in events.get() for found in new_processes(message)]
            except Exception as error:  # ENOBUFS: the kernel dropped events
                came, self.lost_by = None, str(error)
                time.sleep(0.1)
            try:
                if came is None or came:
                    self._hand_over(came)
            except RuntimeError:  # the loop is closed
                return


def new_processes(message: dict[str, Any]) -> Iterator[tuple[int, int]]:
    """The process of an exec or a fork, with its parent in case of a fork; new threads are none."""
    if message["event"] == "PROC_EVENT_EXEC":
        yield message["process_tgid"], 0
    elif message["event"] == "PROC_EVENT_FORK" and message["child_pid"] == message["child_tgid"]:
        yield message["child_tgid"], message["parent_tgid"]
