"""What a load program did, recorded by the program itself: operations with their times and statuses."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple, TypeVar

__all__ = ["Operation", "Recorder", "boottime_ns", "serve", "spread"]

_Connection = TypeVar("_Connection")


class Operation(NamedTuple):
    """One operation of a client.

    Attributes:
        kind: as the server's count names it.
        start_ns, end_ns: CLOCK_BOOTTIME, just before it was sent and just after its answer was read.
        status: "ok", the server's error code, or "skipped": sent, but by the protocol not executed.
        traceparent: the header that went with it, if one did.
    """

    kind: str
    start_ns: int
    end_ns: int
    status: str = "ok"
    traceparent: str = ""


def boottime_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Recorder:
    """Collects operations from any number of threads.

    Args:
        code: the server's error code of an exception; None if the exception is no answer of the server.
    """

    def __init__(self, code: Callable[[Exception], str | None]) -> None:
        self.each: list[Operation] = []
        # What went out by the client library's own account, where it sends more than was asked of it.
        self.sent: list[str] = []
        self._code = code

    @contextmanager
    def operation(self, kind: str, traceparent: str = "") -> Iterator[None]:
        """Record what happens inside. An error that the server answered is a status; any other error is raised."""
        start, status = boottime_ns(), "ok"
        try:
            yield
        except Exception as error:
            code = self._code(error)
            if code is None:
                raise
            status = code
        self.each.append(Operation(kind, start, boottime_ns(), status, traceparent))

    def report(self) -> dict[str, dict[str, int]]:
        """How many operations of each kind, and how many errors of each code; none of those skipped."""
        done = [operation for operation in self.each if operation.status != "skipped"]
        return {
            "operations": Counter(self.sent or [operation.kind for operation in done]),
            "errors": Counter(operation.status for operation in done if operation.status != "ok"),
        }


def spread(
    count: int,
    connections: int,
    connect: Callable[[], AbstractContextManager[_Connection]],
    work: Callable[[_Connection, int], None],
) -> None:
    """Call `work(connection, share)` in a thread for each connection, all at once when all are connected; the shares
    add up to the count."""
    barrier = threading.Barrier(connections)

    def one(share: int) -> None:
        try:
            with connect() as connection:
                barrier.wait(30)
                work(connection, share)
        except BaseException:
            barrier.abort()
            raise

    shares = [count // connections + (number < count % connections) for number in range(connections)]
    with ThreadPoolExecutor(connections) as pool:
        list(pool.map(one, shares))


def serve(code: Callable[[Exception], str | None], modes: dict[str, Callable[..., None]]) -> None:
    """A load program's life: do what each line of standard input asks for, answer each with a line, end with the input.

    A request is `{"mode": ..., "each": bool, **arguments of the mode}`; the answer is the report, with every single
    operation under `each` if asked for.
    """
    print(json.dumps({"modes": list(modes)}), flush=True)
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        mode, each = modes[request.pop("mode")], request.pop("each", False)
        recorder = Recorder(code)
        mode(recorder, **request)
        print(json.dumps({**recorder.report(), "each": recorder.each if each else []}), flush=True)
