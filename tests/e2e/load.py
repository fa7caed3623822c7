"""Requests with known random trace ids, each with the moment it was sent and answered. Also a program:

    python load.py HOST PORT COUNT SEED CONNECTIONS

prints a line for each request: trace id, sampled flag, sent ns, answered ns (CLOCK_MONOTONIC).
"""

from __future__ import annotations

import random
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

__all__ = ["Request", "start_load"]


class Request(NamedTuple):
    trace_id: int
    sampled: bool
    sent_ns: int
    answered_ns: int


def run(host: str, port: int, count: int, seed: int, connections: int) -> list[Request]:
    """Send the requests over so many keep-alive connections, one at a time on each."""
    rng = random.Random(seed)
    selector = selectors.DefaultSelector()
    done: list[Request] = []
    sent = 0

    def send(sock: socket.socket) -> None:
        nonlocal sent
        if sent >= count:
            selector.unregister(sock)
            sock.close()
            return
        sent += 1
        trace_id, span_id, flag = rng.getrandbits(128) | 1, rng.getrandbits(64) | 1, rng.getrandbits(1)
        head = f"GET /pay HTTP/1.1\r\nhost: x\r\ntraceparent: 00-{trace_id:032x}-{span_id:016x}-{flag:02x}\r\n\r\n"
        selector.modify(sock, selectors.EVENT_READ, (trace_id, bool(flag), time.monotonic_ns(), bytearray()))
        sock.sendall(head.encode())

    for _ in range(connections):
        sock = socket.create_connection((host, port))
        selector.register(sock, selectors.EVENT_READ, None)
        send(sock)
    while len(done) < count:
        for key, _ in selector.select(30):
            trace_id, sampled, sent_ns, received = key.data
            data = key.fileobj.recv(65536)  # type: ignore[union-attr]
            if not data:
                raise ConnectionError(f"the server closed after {len(done)} answers")
            received += data
            if complete(received):
                if not received.startswith(b"HTTP/1.1 200"):
                    raise ConnectionError(f"an answer is not 200: {bytes(received)!r}")
                done.append(Request(trace_id, sampled, sent_ns, time.monotonic_ns()))
                send(key.fileobj)  # type: ignore[arg-type]
    return done


def complete(response: bytearray) -> bool:
    head, end, body = response.partition(b"\r\n\r\n")
    if not end:
        return False
    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return len(body) >= int(length.split(b":")[1])


class Load:
    """A load in a process of its own."""

    def __init__(self, port: int, count: int, seed: int, connections: int = 8) -> None:
        arguments = [str(value) for value in ("127.0.0.1", port, count, seed, connections)]
        # A file and not a pipe: a pipe that nobody reads yet would stop the load.
        self._out = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen([sys.executable, __file__, *arguments], stdout=self._out)

    def running(self) -> bool:
        return self._process.poll() is None

    def finish(self) -> list[Request]:
        """Raises AssertionError unless every request was answered with 200."""
        assert self._process.wait(280) == 0
        self._out.seek(0)
        rows = [line.split() for line in self._out]
        self._out.close()
        return [Request(int(row[0], 16), row[1] == "1", int(row[2]), int(row[3])) for row in rows]


def start_load(url: str, count: int, seed: int, connections: int = 8) -> Load:
    return Load(int(url.rpartition(":")[2]), count, seed, connections)


if __name__ == "__main__":
    for request in run(sys.argv[1], *(int(value) for value in sys.argv[2:])):
        print(f"{request.trace_id:032x} {int(request.sampled)} {request.sent_ns} {request.answered_ns}")
