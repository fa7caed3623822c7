"""spandial.Sampler: the decision as an OpenTelemetry sampler.

`should_sample` runs in somebody else's process for every span, so it is a closure over local variables, reads one
64-bit word, compares once and counts once. `bench/decision` measures it; everything else may be slow.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from array import array
from collections.abc import Callable, MutableSequence, Sequence
from typing import TYPE_CHECKING, Any

from opentelemetry import context as context_api
from opentelemetry.context import Context
from opentelemetry.sdk.trace import sampling
from opentelemetry.sdk.trace.sampling import Decision, SamplingResult
from opentelemetry.trace import Link, SpanKind, TraceState, get_current_span, propagation

from spandial import abi
from spandial.abi import EntryKind, Flag
from spandial.labels import Labels, labels_from_environ
from spandial.link import Link as AgentLink
from spandial.plan import NO_ATTRIBUTES, DroppedSpan, KeptSpan, Plan, make_plan, weigh

if TYPE_CHECKING:
    from opentelemetry.util.types import Attributes

__all__ = ["Sampler", "entry_kind", "parse_default"]

_logger = logging.getLogger("spandial")

# The context's key of the current span has no public name; where it is missing, get_current_span serves.
_SPAN_KEY: str | None = getattr(propagation, "_SPAN_KEY", None)
_THIN = Flag.THIN


_DROPPED = SamplingResult(Decision.DROP)


def entry_kind(kind: SpanKind | None, attributes: Attributes) -> EntryKind:
    """Which kind of entry a span is, by the old and the new semantic conventions for HTTP, RPC and databases."""
    if not attributes:
        return EntryKind.INTERNAL
    if kind is SpanKind.SERVER:
        if "http.method" in attributes:
            return EntryKind.HTTP
        if attributes.get("rpc.system", attributes.get("rpc.system.name")) == "grpc":
            return EntryKind.GRPC
        if "http.request.method" in attributes:
            return EntryKind.HTTP
    elif kind is SpanKind.CLIENT and ("db.system" in attributes or "db.system.name" in attributes):
        return EntryKind.DB
    return EntryKind.INTERNAL


def parse_default(text: str | float | None) -> float:
    """The rate (percentage) of OTEL_TRACES_SAMPLER_ARG: a ratio `0.1`, or a percentage `10%`; 100 without it.

    Raises ValueError that says what was received.
    """
    if text is None or text == "":
        return 100.0
    written = str(text).strip()
    try:
        rate = float(written[:-1]) if written.endswith("%") else float(written) * 100
    except ValueError:
        rate = -1.0
    if not 0 <= rate <= 100:
        raise ValueError(f"expected a ratio from 0 to 1, such as 0.1, or a percentage such as 10%; received {text!r}")
    return rate


def _current_context() -> Callable[[], Context]:
    """The fastest way to the current context: the context variable's own getter, where the SDK uses one."""
    variable = getattr(getattr(context_api, "_RUNTIME_CONTEXT", None), "_current_context", None)
    getter: Callable[[], Context] = getattr(variable, "get", context_api.get_current)
    return getter


_ShouldSample = Callable[..., SamplingResult]


def build_decider(
    default: int, tally: MutableSequence[int]
) -> tuple[_ShouldSample, Callable[[Sequence[int]], None], Callable[[], Sequence[int]]]:
    """`should_sample` as a closure, and the functions that exchange and return the words it obeys.

    The counts need no lock under the GIL: CPython (3.10 and later) switches threads at calls and backward jumps
    only, and `tally[i] += 1` has neither. Without the GIL the whole decision runs under a lock.

    Args:
        default: the rate word that stands in for a word without VALID.
        tally: 32 counts, indexed as in the counter page.
    """
    key = _SPAN_KEY or ""
    current = _current_context()
    server, client, internal = SpanKind.SERVER, SpanKind.CLIENT, SpanKind.INTERNAL
    dropped, no_parent = _DROPPED, Context()
    words: Sequence[int] = array("Q", [default] * abi.ROW_WORDS)
    plans = [make_plan(entry, default, default) for entry in EntryKind]
    inner, http, grpc, db = plans
    http_word, http_threshold, http_kept = http[0], http[2], http[4][1]

    def obey(new_words: Sequence[int]) -> None:
        nonlocal words
        words = new_words

    def obeyed() -> Sequence[int]:
        return words

    def replan(entry: int) -> Plan:
        nonlocal inner, http, grpc, db, http_word, http_threshold, http_kept
        plan = plans[entry] = make_plan(entry, words[entry], default)
        inner, http, grpc, db = plans
        # No other thread runs between these stores, or between the loads of a decision: see above.
        http_word, http_threshold, http_kept = http[0], http[2], http[4][1]
        return plan

    def should_sample(
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> Any:
        if parent_context is None:
            parent_context = current()
        if parent_context and key in parent_context:
            return with_parent(parent_context[key], trace_id, kind, attributes)
        if kind is server and attributes:
            if "http.method" in attributes or (
                (rpc := attributes.get("rpc.system")) is None and "http.request.method" in attributes
            ):
                # An HTTP entry, written out with its indexes.
                if words[1] != http_word:
                    replan(1)
                if http_threshold and trace_id & 0xFFFFFFFFFFFFFF < http_threshold:
                    tally[8] += 1
                    return dropped
                tally[9] += 1
                result = http_kept()
                result.attributes = attributes
                return result
            if rpc == "grpc":
                word, entry, threshold, drop_at, keep = grpc
            else:
                word, entry, threshold, drop_at, keep = plans[entry_kind(kind, attributes)]
        elif not attributes or kind is internal:
            word, entry, threshold, drop_at, keep = inner
        elif kind is client and "db.system" in attributes:
            word, entry, threshold, drop_at, keep = db
        else:
            word, entry, threshold, drop_at, keep = plans[entry_kind(kind, attributes)]
        if words[entry] != word:
            word, entry, threshold, drop_at, keep = replan(entry)
        if threshold and trace_id & 0xFFFFFFFFFFFFFF < threshold:
            tally[drop_at] += 1
            return dropped
        keep_at, kept, bare, _, _ = keep
        tally[keep_at] += 1
        if not attributes:
            return bare
        result = kept()
        result.attributes = attributes
        return result

    def portable(
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> Any:
        return with_parent(get_current_span(parent_context), trace_id, kind, attributes)

    def with_parent(span: Any, trace_id: int, kind: SpanKind | None, attributes: Attributes) -> Any:
        try:
            remote, flags, trace_state, valid = span.get_span_context()[2:]
        except (AttributeError, TypeError, ValueError):
            valid = False  # what get_current_span makes of something that is no span
        if not valid:
            return should_sample(no_parent, trace_id, "", kind, attributes)
        if not attributes or kind is internal:
            plan = inner
        elif kind is server and "http.method" in attributes:
            plan = http
        else:
            plan = plans[entry_kind(kind, attributes)]
        word, entry, _, count, keep = plan
        if words[entry] != word:
            plan = replan(entry)
            keep = plan[4]
        how = keep[3]
        kept = flags & 1
        if remote:
            count += 2  # abi.PAGE_REMOTE
            if how:
                return weigh(plan, how, trace_id, kept, trace_state, attributes, tally, count)
        else:
            count += 4  # abi.PAGE_LOCAL
            if kept and how & _THIN:
                return weigh(plan, _THIN, trace_id, kept, trace_state, attributes, tally, count)
        if not kept:
            tally[count] += 1
            drop: Any = DroppedSpan()
            drop.trace_state = trace_state
            return drop
        tally[count + 1] += 1
        result: Any = KeptSpan()
        result.attributes = attributes or NO_ATTRIBUTES
        result.trace_state = trace_state
        return result

    chosen = should_sample if key else portable
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        chosen = _locked(chosen)
    return chosen, obey, obeyed


def _locked(should_sample: _ShouldSample) -> _ShouldSample:
    lock = threading.Lock()

    def renew() -> None:
        nonlocal lock
        lock = threading.Lock()

    def locked(*args: Any, **kwargs: Any) -> SamplingResult:
        with lock:
            return should_sample(*args, **kwargs)

    os.register_at_fork(after_in_child=renew)  # the thread that held the lock does not exist in the child
    return locked


class Sampler(sampling.Sampler):
    """A sampler that obeys the node's dial, by the word that the kernel obeys too.

    Registers with the node's agent in the background; until an agent is found, and for words that no rule has set,
    `default` holds. Never raises and never waits for the agent.

    Args:
        default: a ratio (`0.1`) or a percentage (`"10%"`), as in OTEL_TRACES_SAMPLER_ARG; everything without it.
        service, version, env: labels; those left out come from OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES.
        run_dir: the agent's run directory; SPANDIAL_RUN_DIR or /run/spandial without it.
    """

    def __init__(
        self,
        default: str | float | None = None,
        *,
        service: str | None = None,
        version: str | None = None,
        env: str | None = None,
        run_dir: str | None = None,
    ) -> None:
        try:
            rate = parse_default(default)
        except ValueError as error:
            _logger.warning("OTEL_TRACES_SAMPLER_ARG: %s; sampling everything until an agent says otherwise", error)
            rate = 100.0
        found = labels_from_environ(os.environ)
        labels = Labels(
            service=found.service if service is None else service,
            version=found.version if version is None else version,
            env=found.env if env is None else env,
        )
        self._default = rate
        self._tally = [0] * abi.PAGE_COUNT_WORDS
        word = abi.encode_word(rate)
        # Instance attributes shadow the method: a closure is the fastest thing Python can call.
        self.should_sample, obey, obeyed = build_decider(word, self._tally)  # type: ignore[method-assign]
        self._link = AgentLink(
            labels,
            default=word,
            tally=self._tally,
            obey=obey,
            obeyed=obeyed,
            run_dir=run_dir or os.environ.get("SPANDIAL_RUN_DIR") or "/run/spandial",
        )
        self._link.start()

    def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:  # pragma: no cover
        raise NotImplementedError  # only so that the class is not abstract; see __init__

    def get_description(self) -> str:
        return f"Spandial{{default={self._default:g}%}}"
