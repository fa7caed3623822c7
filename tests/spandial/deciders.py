"""What the sampler's tests share: deciders without a link, and parents for them to look at."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import SamplingResult
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags, TraceState, set_span_in_context

from spandial import abi, decider
from spandial.abi import EntryKind, Parent

__all__ = ["SPANS", "Blocking", "Decider", "parent_context"]

# A span of each kind of entry.
SPANS: dict[EntryKind, tuple[SpanKind, dict[str, str]]] = {
    EntryKind.INTERNAL: (SpanKind.INTERNAL, {}),
    EntryKind.HTTP: (SpanKind.SERVER, {"http.request.method": "GET"}),
    EntryKind.GRPC: (SpanKind.SERVER, {"rpc.system": "grpc"}),
    EntryKind.DB: (SpanKind.CLIENT, {"db.system": "postgresql"}),
}


def parent_context(parent: Parent, trace_id: int, trace_state: Sequence[tuple[str, str]] = ()) -> Context:
    """A context whose current span is such a parent; an empty one without a parent."""
    if parent is Parent.NONE:
        return Context()
    span_context = SpanContext(
        trace_id,
        0xABCDEF,
        is_remote=parent in (Parent.REMOTE_KEPT, Parent.REMOTE_DROPPED),
        trace_flags=TraceFlags(parent in (Parent.REMOTE_KEPT, Parent.LOCAL_KEPT)),
        trace_state=TraceState(list(trace_state)),
    )
    return set_span_in_context(NonRecordingSpan(span_context), Context())


class Decider(decider.Decider):
    """The sampler without a link, and the words it obeys, which may be written at any time."""

    words: list[int]

    def __init__(self, word: int = 0, default: int = abi.encode_word(100)) -> None:
        super().__init__(default)
        self.obey([word] * abi.ROW_WORDS)

    def decide(
        self,
        trace_id: int,
        parent: Parent = Parent.NONE,
        trace_state: Sequence[tuple[str, str]] = (),
        entry: EntryKind = EntryKind.HTTP,
    ) -> SamplingResult:
        kind, attributes = SPANS[entry]
        return self.sample(kind, attributes, trace_id, parent, trace_state)

    def sample(
        self,
        kind: SpanKind | None,
        attributes: Mapping[str, Any] | None,
        trace_id: int = 1,
        parent: Parent = Parent.NONE,
        trace_state: Sequence[tuple[str, str]] = (),
    ) -> SamplingResult:
        return self.should_sample(parent_context(parent, trace_id, trace_state), trace_id, "span", kind, attributes, ())

    def counted(self) -> dict[int, int]:
        """The counts that are not zero, by their slots."""
        return {slot: count for slot, count in enumerate(self.counts()) if count}


class Blocking(dict[str, str]):
    """Attributes that hold up whoever looks into them."""

    def __init__(self) -> None:
        super().__init__(key="value")
        self.entered, self.go_on = threading.Event(), threading.Event()

    def __contains__(self, key: object) -> bool:
        self.entered.set()
        return self.go_on.wait(30) and False
