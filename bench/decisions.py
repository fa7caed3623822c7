"""A hooked process that decides in batches, for bench/compare: the same file for both trees, with each tree's sampler.

It is given a run directory and a service, registers with the agent there, and writes where its sampler is from. It then
answers lines of JSON until standard input ends:

- a case, `{"name", "kind", "attributes", "calls"}`, is answered by how many of its calls were kept. A call is a trace
  id and its parent, `[span_id, is_remote, trace_flags, tracestate]`, or null.
- a number, how often to make the calls of the last case, is answered by the nanoseconds per decision.

It knows `spandial.Sampler` and OpenTelemetry's interface alone, for it must run in any tree.
"""

from __future__ import annotations

import gc
import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any, NamedTuple

from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.sdk.trace.sampling import Sampler as AnySampler
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

import spandial

_Call = tuple[Context | None, int]
_Loop = Callable[[AnySampler, Sequence[_Call], "_Case", int], float]


class _Case(NamedTuple):
    name: str
    kind: SpanKind
    attributes: dict[str, str | int] | None
    calls: list[_Call]


def _loop(sampler: AnySampler, calls: Sequence[_Call], case: _Case, times: int) -> float:
    """Nanoseconds of processor time per decision: whoever else wants the core meanwhile does not count."""
    name, kind, attributes, _ = case
    decide = sampler.should_sample
    start = time.thread_time_ns()
    for _ in range(times):
        for context, trace_id in calls:
            decide(context, trace_id, name, kind, attributes, None)
    return (time.thread_time_ns() - start) / (len(calls) * times)


def _case(name: str, kind: str, attributes: dict[str, str | int] | None, calls: list[list[Any]]) -> _Case:
    return _Case(name, SpanKind[kind], attributes, [(_context(parent, trace), trace) for trace, parent in calls])


def _context(parent: list[Any] | None, trace_id: int) -> Context | None:
    if parent is None:
        return None
    span_id, is_remote, flags, tracestate = parent
    state = TraceState.from_header([tracestate] if tracestate else [])
    span = SpanContext(trace_id, span_id, is_remote=is_remote, trace_flags=TraceFlags(flags), trace_state=state)
    return set_span_in_context(NonRecordingSpan(span), Context())


def _kept(sampler: AnySampler, case: _Case) -> int:
    name, kind, attributes, calls = case
    results = (sampler.should_sample(context, trace, name, kind, attributes, None) for context, trace in calls)
    return sum(result.decision is Decision.RECORD_AND_SAMPLE for result in results)


def _main(run_dir: str, service: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the benchmark ends it
    sampler = spandial.Sampler(service=service, run_dir=run_dir)
    case: _Case | None = None
    loop: _Loop = _loop
    print(json.dumps(spandial.__file__), flush=True)
    gc.disable()
    for line in sys.stdin:
        question = json.loads(line)
        if isinstance(question, dict):
            case = _case(**question)
            # CPython adapts bytecode to what it meets there: each case has a loop of its own.
            loop = FunctionType(_loop.__code__.replace(), globals())
            answer: float = _kept(sampler, case)
        else:
            assert case is not None
            answer = loop(sampler, case.calls, case, question)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
