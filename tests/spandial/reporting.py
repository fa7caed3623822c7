"""What the tests' applications run: the rate that their decisions show, a line of JSON for each report."""

from __future__ import annotations

import json
import os
import select
import time

from opentelemetry.context import Context
from opentelemetry.trace import SpanKind

from spandial import Sampler

__all__ = ["decide", "linked", "rate", "report", "say", "serve"]

_HTTP = {"http.request.method": "GET"}
_STEP = (1 << 56) // 100
_END = os.dup(0)  # multiprocessing gives its children another standard input


def decide(sampler: Sampler, count: int, path: str = "/") -> int:
    """Decide on so many HTTP requests for a path, their randomness spread evenly; how many were kept."""
    attributes = {**_HTTP, "url.path": path}
    spread = ((index % 100 * _STEP + _STEP // 2) for index in range(count))
    return sum(
        sampler.should_sample(Context(), trace_id, "GET", SpanKind.SERVER, attributes).decision.is_sampled()
        for trace_id in spread
    )


def rate(sampler: Sampler, path: str = "/") -> int:
    """The percentage of HTTP requests for a path that the sampler keeps just now."""
    return decide(sampler, 100, path)


def linked(sampler: Sampler) -> Sampler:
    """The sampler, once it obeys the agent's table and its counts are being published."""
    link = sampler._link
    while link._page is None or not isinstance(sampler.words, memoryview):
        time.sleep(0.001)
    return sampler


def say(**report: object) -> None:
    # One write: several processes may share the pipe.
    os.write(1, json.dumps({"pid": os.getpid(), **report}).encode() + b"\n")


def report(sampler: Sampler, **more: object) -> None:
    say(rate=rate(sampler), **more)


def serve(sampler: Sampler, *paths: str) -> None:
    """Report about every 10 ms until standard input ends; also the rates of these paths."""
    while not select.select([_END], [], [], 0.01)[0]:
        report(sampler, paths=[rate(sampler, path) for path in paths])
