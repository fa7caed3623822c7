"""Somebody who watches the kept entries, as `spandial watch` does, and reads as fast as can be."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

__all__ = ["Watcher"]


class Watcher:
    """Reads GET /entries from its construction until it is closed.

    Args:
        run_dir: of the agent.
        service: whose entries; by default everybody's.

    Attributes:
        entries: how many came.
    """

    def __init__(self, run_dir: Path, service: str = "*") -> None:
        self.entries = 0
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(run_dir / "api.sock"))
        self._socket.sendall(f"GET /entries?service={service} HTTP/1.1\r\nHost: spandial\r\n\r\n".encode())
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _read(self) -> None:
        rest = b""
        while chunk := self._socket.recv(1 << 20):
            self.entries += (rest + chunk).count(b"data: ")
            rest = chunk[-5:]  # too short to hold a mark that was counted
