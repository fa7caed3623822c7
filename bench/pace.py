"""Requests at a steady pace, each on a connection of its own, and how long they took."""

from __future__ import annotations

import http.client
import math
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

__all__ = ["Asked", "Paced", "UnixConnection"]

_EVERY_S = 0.05
_PATIENCE_S = 20.0


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, timeout: float = _PATIENCE_S) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Asked(NamedTuple):
    """One request.

    Attributes:
        due: when it had to be sent, by the monotonic clock.
        end: when it was answered, or failed.
        failure: why; empty if it did not.
    """

    due: float
    end: float
    failure: str

    @property
    def ms(self) -> float:
        """From when it was due: a request that had to wait for the one before is late, too. Infinite if it failed."""
        return math.inf if self.failure else (self.end - self.due) * 1000


class Paced:
    """A thread that sends a request 20 times a second while it is entered.

    Args:
        connect: makes a connection, not connected yet.
        method: of the requests.
        paths: in turn.
        headers: of each.
    """

    def __init__(
        self,
        connect: Callable[[], http.client.HTTPConnection],
        method: str,
        paths: tuple[str, ...],
        headers: dict[str, str] | None = None,
    ) -> None:
        self._connect, self._method, self._paths, self._headers = connect, method, paths, headers or {}
        self._asked: list[Asked] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def between(self, begin: float, end: float) -> list[Asked]:
        """Those that were due in this time, and have been answered."""
        return [asked for asked in list(self._asked) if begin <= asked.due < end]

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            failure = self._ask(self._paths[len(self._asked) % len(self._paths)])
            self._asked.append(Asked(due, time.monotonic(), failure))
            due += _EVERY_S

    def _ask(self, path: str) -> str:
        connection = self._connect()
        try:
            connection.request(self._method, path, headers=self._headers)
            answer = connection.getresponse()
            said = answer.read()
        except (OSError, http.client.HTTPException) as error:
            return repr(error)
        finally:
            connection.close()
        return "" if answer.status == 200 else f"{answer.status} {said[:200]!r}"

    def __enter__(self) -> Paced:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
