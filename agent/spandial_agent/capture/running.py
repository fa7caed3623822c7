"""Whether the capture programs run, for sockets and for TLS together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from spandial_agent.capture.capture import Capture
from spandial_agent.capture.follower import TlsFollower
from spandial_agent.errors import KernelUnavailable
from spandial_agent.kernel.libbpf import ProgramInfo

__all__ = ["RunningCapture"]


class RunningCapture:
    """Begins with programs that run.

    Args:
        capture: the programs for sockets, if there are any.
        tls: what follows the TLS of targets, if anything does.

    Attributes:
        started: nobody has stopped them, and the kernel has taken them.
        missing: why they do not run although somebody started them.
    """

    def __init__(self, capture: Capture | None, tls: TlsFollower | None) -> None:
        self._capture = capture
        self._tls = tls
        self.started = asyncio.Event()
        self.started.set()
        self.missing: list[str] = []

    @property
    def running(self) -> bool:
        return self.started.is_set()

    def stop(self) -> None:
        """All programs leave the kernel's tracepoints, and all probes the libraries."""
        self.started.clear()
        self.missing = []
        if self._capture is not None:
            self._capture.detach()
        if self._tls is not None:
            self._tls.pause()

    def start(self) -> None:
        """After `stop`, or once more where they could not be attached."""
        self.missing = []
        if self._capture is not None:
            try:
                self._capture.attach()
            except (KernelUnavailable, OSError) as error:
                self._capture.detach()  # half of it would count half
                lacks = error.missing if isinstance(error, KernelUnavailable) else [str(error)]
                self.missing = [f"capture is off, and 'spandial on' tries again: {lack}" for lack in lacks]
                return
        self.started.set()
        if self._tls is not None:
            self._tls.resume()

    def programs(self) -> Sequence[ProgramInfo]:
        """What the kernel knows of all of them."""
        found = self._capture.programs if self._capture is not None else []
        return [*found, *(self._tls.programs() if self._tls is not None else [])]
