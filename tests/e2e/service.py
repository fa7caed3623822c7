"""A real FastAPI service, started under opentelemetry-instrument by the tests.

With KEPT_FILE set, each process appends the trace id (16 bytes) of every server span it keeps to KEPT_FILE.<pid>.
"""

from __future__ import annotations

import os

import httpx
from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.propagate import inject
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.trace import SpanKind

app = FastAPI()


@app.get("/pay")
async def pay() -> dict[str, int]:
    return {"paid": 1}


_calls = httpx.AsyncClient()


@app.get("/ask")
async def ask(url: str) -> int:
    """Ask another service, as an instrumented client does: with the trace context; the answer's status."""
    headers: dict[str, str] = {}
    inject(headers)
    return (await _calls.get(url, headers=headers)).status_code


class KeptFile(SpanProcessor):
    """Writes what the sampler kept; unbuffered, so that a kill loses nothing."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._files: dict[int, int] = {}

    def on_end(self, span: ReadableSpan) -> None:
        context = span.get_span_context()
        if span.kind is SpanKind.SERVER and context is not None:
            pid = os.getpid()
            if pid not in self._files:
                self._files[pid] = os.open(f"{self._path}.{pid}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.write(self._files[pid], context.trace_id.to_bytes(16, "big"))


if "KEPT_FILE" in os.environ:
    trace.get_tracer_provider().add_span_processor(KeptFile(os.environ["KEPT_FILE"]))  # type: ignore[attr-defined]
