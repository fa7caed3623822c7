"""Follows the TLS of targets: looks for libraries in them, and attaches to each library once."""

from __future__ import annotations

import heapq
import queue
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import count

import structlog

from spandial_agent.capture.attachments import Attachments
from spandial_agent.capture.mapped_file import Identity
from spandial_agent.capture.mappings import Seen, look_at
from spandial_agent.capture.openssl import TlsCapture
from spandial_agent.capture.time_shares import TimeShares
from spandial_agent.kernel.libbpf import ProgramInfo
from spandial_agent.processes.held import HeldProcess
from spandial_agent.supervised import Supervised

__all__ = ["TlsFollower"]

_log = structlog.get_logger("spandial.tls")

# Seconds after a process became a target, or runs another program: it maps its libraries by and by.
_LOOKS_S = (0.0, 0.2, 1.0, 5.0, 30.0)
_AGAIN_S = 300.0  # from then on
_UNUSED_S = 120.0  # a service may come back, and nobody wants to miss its first requests
_USER_AT_ONCE_S, _USER_PART = 3.0, 0.1  # of this thread's time for the processes of one user
_LOOK_S = 0.5  # of this thread's time for one look
_END_S = 0.5  # until the end waits no longer for a look at hand, or for the compiler
_SHOWN = 8  # libraries that are named
_STILL_S = _UNUSED_S + 180.0  # it waits for so long, and then a compiler may take minutes where there is no time


@dataclass
class _Process:
    """What is known of a target's TLS while it runs one program."""

    pid: int
    start_time: int
    began: float
    looks: int = 0
    gone: bool = False
    words: str = "not looked at yet"
    libraries: frozenset[Identity] = frozenset()


class TlsFollower:
    """Looks at targets in a thread of its own, and compiles the programs there when the first library is found.

    Args:
        load: makes the programs; raises KernelUnavailable where the kernel does not take them.
        trusted: users whose files are believed in every process.
    """

    def __init__(self, load: Callable[[], TlsCapture], trusted: Collection[int] = ()) -> None:
        self._attachments = Attachments(load)
        self._trusted = trusted
        self._times = TimeShares(_USER_AT_ONCE_S, _USER_PART)
        self._processes: dict[int, _Process] = {}
        self._due: list[tuple[float, int, _Process]] = []
        self._order = count()
        self._news: queue.SimpleQueue[_Process | None] = queue.SimpleQueue()
        self._ending = self._paused = False
        self.thread = Supervised(
            "spandial-tls", "follower of TLS", self._run, at_end=self._attachments.close, still_s=_STILL_S
        )
        self.thread.start()

    @property
    def reason(self) -> str:
        """Why no TLS is followed on this host, in one sentence; empty while nothing speaks against it."""
        unavailable = self._attachments.unavailable
        return "TLS is not followed: " + " ".join(unavailable.missing) if unavailable is not None else ""

    @property
    def refused(self) -> int:
        """How often a library was not followed because its user has too many."""
        return self._attachments.refused

    def follow(self, pid: int, start_time: int) -> None:
        """A process became a target, or runs another program.

        Args:
            start_time: clock ticks since boot; with the pid it says which process it is.
        """
        self.forget(pid)
        process = self._processes[pid] = _Process(pid, start_time, time.monotonic())
        self._news.put(process)

    def forget(self, pid: int) -> None:
        """A process is no target any more."""
        process = self._processes.pop(pid, None)
        if process is not None:
            process.gone = True

    def words(self, pid: int) -> str:
        """How a target's TLS is seen, for a person; all of it can be printed."""
        process = self._processes.get(pid)
        return process.words if process is not None else ""

    def programs(self) -> list[ProgramInfo]:
        """What the kernel knows of the programs in use."""
        return self._attachments.programs()

    def pause(self) -> None:
        """Detach from everything, and look at nothing until `resume`."""
        self._paused = True
        for process in list(self._processes.values()):
            process.words = "not looked at: capture is off"
            process.libraries = frozenset()
        self._news.put(_Process(0, 0, 0.0, gone=True))  # wakes the thread

    def resume(self) -> None:
        self._paused = False
        for process in list(self._processes.values()):
            self.follow(process.pid, process.start_time)

    def close(self) -> None:
        """Detach from everything; if the thread is at work for longer, all that it attached ends with this process."""
        self._ending = True
        self._news.put(None)
        self.thread.join(_END_S)

    def _run(self) -> None:
        while self._take_news():
            if self._paused:
                self._attachments.leave_all()
            while self._due and self._due[0][0] <= time.monotonic() and not self._stopped:
                self.thread.beat()
                process = heapq.heappop(self._due)[2]
                if not process.gone:
                    self._look(process)
            used = {identity for process in list(self._processes.values()) for identity in process.libraries}
            self._attachments.leave_unused(used, _UNUSED_S)

    def _take_news(self) -> bool:
        """Wait until something is to be done. False at the end."""
        wait = _UNUSED_S
        if self._due and not self._paused:
            wait = max(0.0, self._due[0][0] - time.monotonic())
        if self._ending:
            return False
        self.thread.beat()
        try:
            process = self._news.get(timeout=wait)
            while process is not None:
                self._plan(process)
                process = self._news.get_nowait()
            return False
        except queue.Empty:
            return not self._ending

    @property
    def _stopped(self) -> bool:
        return self._ending or self._paused

    def _plan(self, process: _Process) -> None:
        """When to look at a process next."""
        looks, process.looks = process.looks, process.looks + 1
        due = process.began + _LOOKS_S[looks] if looks < len(_LOOKS_S) else time.monotonic() + _AGAIN_S
        heapq.heappush(self._due, (due, next(self._order), process))

    def _look(self, process: _Process) -> None:
        try:
            with HeldProcess(process.pid, process.start_time) as held:
                user = held.credentials().user
                wait_s = self._times.wait_s(user)
                if wait_s:
                    process.words = f"not looked at: the processes of user {user} took more than their share of time"
                    heapq.heappush(self._due, (time.monotonic() + wait_s, next(self._order), process))
                    return
                self._look_into(process, held, user)
        except (FileNotFoundError, ProcessLookupError):  # it has ended, and will be forgotten
            pass
        except OSError as error:
            process.words = f"not seen: the process may not be looked at ({error.strerror})"
        except Exception:  # whatever it is, the other processes are followed
            process.words = "not seen: the agent failed to look at it, and says more in its log"
            _log.exception("a process's TLS cannot be looked at", pid=process.pid)
        self._plan(process)

    def _look_into(self, process: _Process, held: HeldProcess, user: int) -> None:
        with _Timed(self._times, user) as look:
            seen = look_at(held, self._trusted, lambda: not self._stopped and look.used_s() < _LOOK_S)
        with seen:
            if seen.libraries and not self._stopped:
                self._attachments.prepare()  # for all, and so not at this user's cost
            with _Timed(self._times, user):
                for library in seen.libraries:
                    if self._stopped:
                        return
                    self._attachments.attach(library, user)
            process.libraries = frozenset(library.identity for library in seen.libraries)
            process.words = self._describe(seen)

    def _describe(self, seen: Seen) -> str:
        failures = [(library.name, self._attachments.failure(library)) for library in seen.libraries]
        followed = [name for name, failure in failures if not failure]
        failed = [f"{name} ({failure})" for name, failure in failures if failure] + seen.refused
        parts = [f"OpenSSL ({_few(followed)})"] if followed else []
        # What else there is may be there by the way: said where nothing is followed.
        unseen = failed or ([] if followed else seen.hidden)
        if unseen:
            parts.append(f"not seen: {_few(unseen)}")
        return "; ".join(parts) or "none found"


class _Timed:
    """What this thread does meanwhile is at a user's cost."""

    def __init__(self, times: TimeShares, user: int) -> None:
        self._times, self._user, self._began = times, user, time.thread_time()

    def used_s(self) -> float:
        return time.thread_time() - self._began

    def __enter__(self) -> _Timed:
        return self

    def __exit__(self, *_: object) -> None:
        self._times.used(self._user, self.used_s())


def _few(names: list[str]) -> str:
    names = list(dict.fromkeys(names))
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
