"""A steady load on one service: so many requests a second over one connection, two of three with a traceparent."""

from __future__ import annotations

import http.client
import random
import threading
import time

__all__ = ["SteadyLoad"]

# As callers that sample 1 % send it.
_SAMPLED = 0.01


class SteadyLoad:
    """Runs in a thread until stopped.

    Attributes:
        sent: requests answered so far.
        failed: requests that were not answered with 200.
    """

    def __init__(self, port: int, per_second: float) -> None:
        self.sent = 0
        self.failed = 0
        self._port = port
        self._pause = 1 / per_second
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(5)

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
        due = time.monotonic()
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            due += self._pause
            try:
                connection.request("GET", "/pay", headers=_headers())
                answer = connection.getresponse()
                answer.read()
                self.failed += answer.status != 200
            except (OSError, http.client.HTTPException):
                self.failed += 1
                connection.close()
            self.sent += 1


def _headers() -> dict[str, str]:
    if random.random() < 1 / 3:
        return {}
    sampled = int(random.random() < _SAMPLED)
    return {"traceparent": f"00-{random.getrandbits(128) | 1:032x}-{random.getrandbits(64) | 1:016x}-{sampled:02x}"}
