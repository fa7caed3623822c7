"""The libraries that are followed: each is attached to once, and left when nobody has used it for a while."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import structlog

from spandial_agent.capture.mapped_file import Identity
from spandial_agent.capture.mappings import Library
from spandial_agent.capture.openssl import TlsCapture
from spandial_agent.errors import KernelUnavailable
from spandial_agent.kernel.libbpf import ProgramInfo
from spandial_agent.processes.shares import Shares

__all__ = ["Attachments"]

_log = structlog.get_logger("spandial.tls")

_LIBRARIES = 512  # attached to at once
_FAILED = "cannot be probed"


@dataclass
class _Attached:
    """A library: its links, or why there are none.

    Attributes:
        user: whose process was the first to map it, and who has the place for it.
        full: there was no place for it; there may be one later.
    """

    library: Library
    user: int
    links: list[int] = field(default_factory=list)
    failure: str = ""
    full: bool = False
    unused_since: float = 0.0


class Attachments:
    """All methods but `programs` run in one thread.

    Args:
        load: makes the programs; called when the first library is found, and raises KernelUnavailable where the kernel
            does not take them.

    Attributes:
        unavailable: why the kernel did not take the programs.
        refused: how often a library found no place.
    """

    def __init__(self, load: Callable[[], TlsCapture]) -> None:
        self._load = load
        self._capture: TlsCapture | None = None
        self._libraries: dict[Identity, _Attached] = {}
        self._places = Shares(_LIBRARIES, _LIBRARIES // 8)  # all are a reserve: one user alone gets half
        self.unavailable: KernelUnavailable | None = None
        self.refused = 0

    def failure(self, library: Library) -> str:
        """Why it is not followed; empty if it is."""
        return self._libraries[library.identity].failure

    def programs(self) -> list[ProgramInfo]:
        """What the kernel knows of the programs in use. From any thread."""
        capture = self._capture
        return list(capture.programs.values()) if capture is not None else []

    def prepare(self) -> None:
        """Make the programs, if they are not there."""
        try:
            self._programs()
        except KernelUnavailable:  # said of each library
            pass

    def attach(self, library: Library, user: int) -> None:
        """Follow a library that a process of this user has mapped, and that is open."""
        known = self._libraries.get(library.identity)
        if known is not None:
            same = known.library.version == library.version or (
                bool(known.links) and known.library.offsets == library.offsets
            )
            if same and not known.full:
                return
            # The file was written: its functions are elsewhere.
            self._detach(known)
        attached = self._libraries[library.identity] = _Attached(library, user)
        try:
            capture = self._programs()
            if not self._places.may_take(user, _LIBRARIES - self._places.total):
                attached.full = True
                self.refused += 1
                attached.failure = (
                    f"{_FAILED}: user {user} has {self._places.held(user)} of the {_LIBRARIES} libraries "
                    "that are followed at once"
                )
                return
            attached.links = capture.attach(library.path, library.offsets)
            self._places.take(user)
            _log.info("following TLS", library=library.name)
        except KernelUnavailable as error:
            attached.failure = " ".join(error.missing)
        except OSError as error:
            attached.failure = f"{_FAILED}: {error.strerror}"
            _log.warning("TLS is not followed", library=library.name, error=attached.failure)

    def leave_unused(self, used: Collection[Identity], unused_s: float) -> None:
        """Detach from those that nobody has used for so long."""
        now = time.monotonic()
        for identity, attached in list(self._libraries.items()):
            if identity in used or not attached.unused_since:
                attached.unused_since = now
            elif now - attached.unused_since > unused_s:
                self._detach(attached)
                del self._libraries[identity]

    def leave_all(self) -> None:
        """Detach from everything; what is attached to again has its place again."""
        for attached in self._libraries.values():
            self._detach(attached)
        self._libraries.clear()

    def close(self) -> None:
        if self._capture is not None:
            self._capture.close()
        self._libraries.clear()

    def _detach(self, attached: _Attached) -> None:
        if attached.links and self._capture is not None:
            self._capture.detach(attached.links)
            attached.links = []
            self._places.give_back(attached.user)

    def _programs(self) -> TlsCapture:
        """Raises KernelUnavailable, the first time and ever after."""
        if self.unavailable is not None:
            raise self.unavailable
        if self._capture is None:
            try:
                self._capture = self._load()
            except KernelUnavailable as error:
                self.unavailable = error
                _log.warning("TLS is not followed", reason=" ".join(error.missing))
                raise
        return self._capture
