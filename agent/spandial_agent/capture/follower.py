"""Follows the TLS of targets: looks for libraries in them, and attaches to each library once."""

from __future__ import annotations

import errno
import heapq
import os
import queue
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

import structlog

from spandial_agent.capture.mappings import Identity, Library, Seen, look_at
from spandial_agent.capture.openssl import TlsCapture
from spandial_agent.errors import KernelUnavailable
from spandial_agent.supervised import Supervised
from spandial_agent.text import text_of

__all__ = ["TlsFollower"]

_log = structlog.get_logger("spandial.tls")

# Seconds after a process became a target, or runs another program: it maps its libraries by and by.
_LOOKS_S = (0.0, 0.2, 1.0, 5.0, 30.0)
_AGAIN_S = 300.0  # from then on
_UNUSED_S = 120.0  # a service may come back, and nobody wants to miss its first requests
_STILL_S = _UNUSED_S + 180.0  # it waits for so long, and then a compiler may take minutes where there is no time
_LIBRARIES = 512  # attached to at once; each takes ten descriptors
_LIBRARY_FAILED = "cannot be probed"


@dataclass
class _Process:
    """What is known of a target's TLS while it runs one program."""

    pid: int
    began: float
    looks: int = 0
    gone: bool = False
    words: str = "not looked at yet"
    libraries: frozenset[Identity] = frozenset()


@dataclass
class _Attached:
    """A library: its descriptors, or why there are none."""

    events: list[int] = field(default_factory=list)
    failure: str = ""
    unreached: bool = False  # another process may still lead to it
    unused_since: float = 0.0


class TlsFollower:
    """Looks at targets in a thread of its own, and compiles the programs there when the first library is found.

    Args:
        load: makes the programs; raises KernelUnavailable where the kernel does not take them.
    """

    def __init__(self, load: Callable[[], TlsCapture]) -> None:
        self._refused: KernelUnavailable | None = None
        self._load = load
        self._capture: TlsCapture | None = None
        self._processes: dict[int, _Process] = {}
        self._libraries: dict[Identity, _Attached] = {}
        self._due: list[tuple[float, int, _Process]] = []
        self._order = count()
        self._closing = False
        self._news: queue.SimpleQueue[_Process | None] = queue.SimpleQueue()
        self.thread = Supervised("spandial-tls", "follower of TLS", self._run, at_end=self._end, still_s=_STILL_S)
        self.thread.start()

    @property
    def reason(self) -> str:
        """Why no TLS is followed on this host, in one sentence; empty while nothing speaks against it."""
        return "TLS is not followed: " + " ".join(self._refused.missing) if self._refused is not None else ""

    def follow(self, pid: int) -> None:
        """A process became a target, or runs another program."""
        self.forget(pid)
        process = self._processes[pid] = _Process(pid, time.monotonic())
        self._news.put(process)

    def forget(self, pid: int) -> None:
        """A process is no target any more."""
        process = self._processes.pop(pid, None)
        if process is not None:
            process.gone = True

    def words(self, pid: int) -> str:
        """How a target's TLS is seen, for a person."""
        process = self._processes.get(pid)
        return process.words if process is not None else ""

    def close(self) -> None:
        """Detach from everything. Waits for the compiler, if it is at work."""
        self._closing = True
        self._news.put(None)
        self.thread.join()

    def _run(self) -> None:
        while self._take_news():
            while self._due and self._due[0][0] <= time.monotonic():
                self.thread.beat()
                process = heapq.heappop(self._due)[2]
                if not process.gone:
                    self._plan(process)
                    self._try_to_look(process)
            self._detach_unused()

    def _end(self) -> None:
        for library in self._libraries.values():
            _detach(library)
        if self._capture is not None:
            self._capture.close()

    def _take_news(self) -> bool:
        """Wait until something is to be done. False at the end."""
        wait = max(0.0, self._due[0][0] - time.monotonic()) if self._due else _UNUSED_S
        if self._closing:
            return False
        self.thread.beat()
        try:
            process = self._news.get(timeout=wait)
            while process is not None:
                self._plan(process)
                process = self._news.get_nowait()
            return False
        except queue.Empty:
            return True

    def _plan(self, process: _Process) -> None:
        """When to look at a process next."""
        looks, process.looks = process.looks, process.looks + 1
        due = process.began + _LOOKS_S[looks] if looks < len(_LOOKS_S) else time.monotonic() + _AGAIN_S
        heapq.heappush(self._due, (due, next(self._order), process))

    def _try_to_look(self, process: _Process) -> None:
        try:
            self._look(process)
        except Exception as error:  # what one process maps ends nobody else's TLS
            process.words = text_of(f"not seen: the process could not be looked at ({error})")
            _log.warning("a process could not be looked at", pid=process.pid, exc_info=error)

    def _look(self, process: _Process) -> None:
        try:
            seen = look_at(process.pid)
        except FileNotFoundError:  # it has ended
            return
        except OSError as error:
            process.words = f"not seen: the process may not be looked at ({error.strerror})"
            return
        for library in seen.libraries:
            self._attach(library)
        process.libraries = frozenset(library.identity for library in seen.libraries)
        process.words = self._describe(seen)

    def _describe(self, seen: Seen) -> str:
        followed = [library.name for library in seen.libraries if not self._libraries[library.identity].failure]
        failed = [
            f"{library.name} ({self._libraries[library.identity].failure})"
            for library in seen.libraries
            if self._libraries[library.identity].failure
        ]
        parts = [f"OpenSSL ({', '.join(followed)})"] if followed else []
        # What else there is may be there by the way: said where nothing is followed.
        unseen = failed or ([] if followed else seen.hidden)
        if unseen:
            parts.append(f"not seen: {', '.join(unseen)}")
        return "; ".join(parts) or "none found"

    def _attach(self, library: Library) -> None:
        known = self._libraries.get(library.identity)
        if known is not None and not known.unreached:
            return
        attached = self._libraries[library.identity] = _Attached()
        try:
            if len(self._libraries) > _LIBRARIES:
                raise OSError(0, f"there are more than {_LIBRARIES} libraries")
            attached.events = self._programs().attach(library.path, library.offsets)
            _log.info("following TLS", library=library.name)
        except KernelUnavailable as error:
            attached.failure = " ".join(error.missing)
        except OSError as error:
            attached.failure = f"{_LIBRARY_FAILED}: {error.strerror}"
            attached.unreached = error.errno in (errno.ENOENT, errno.ESRCH)  # the process it was reached by has ended
            _log.warning("TLS is not followed", library=library.name, error=str(error))

    def _programs(self) -> TlsCapture:
        """Raises KernelUnavailable, the first time and ever after."""
        if self._refused is not None:
            raise self._refused
        if self._capture is None:
            try:
                self._capture = self._load()
            except KernelUnavailable as error:
                self._refused = error
                _log.warning(self.reason)
                raise
        return self._capture

    def _detach_unused(self) -> None:
        now = time.monotonic()
        used = {identity for process in list(self._processes.values()) for identity in process.libraries}
        for identity, library in list(self._libraries.items()):
            if identity in used or not library.unused_since:
                library.unused_since = now
            elif now - library.unused_since > _UNUSED_S:
                _detach(library)
                del self._libraries[identity]


def _detach(library: _Attached) -> None:
    for event in library.events:
        os.close(event)
    library.events.clear()
