"""The decision as an OpenTelemetry sampler: it obeys the words it is given, and counts what it decided.

`should_sample` runs in somebody else's process for every span: it reads one 64-bit word, compares once and counts
once. `bench/decision` measures it, and everything else may be slow. The four kinds of root spans are written out: what
they would share, a call or an index, costs a tenth of a decision each.
"""

from __future__ import annotations

import os
import sys
import threading
from array import array
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from opentelemetry import context as context_api
from opentelemetry.context import Context
from opentelemetry.sdk.trace import sampling
from opentelemetry.sdk.trace.sampling import Decision, SamplingResult
from opentelemetry.trace import Link, SpanKind, TraceState, get_current_span, propagation

from spandial import abi
from spandial.abi import EntryKind, Flag
from spandial.plan import NO_ATTRIBUTES, DroppedSpan, KeptSpan, Plan, make_plan, weigh
from spandial.sheet import OperationRates

if TYPE_CHECKING:
    from opentelemetry.util.types import Attributes

__all__ = ["Decider", "entry_kind"]

# The context's key of the current span has no public name; where it is missing, get_current_span serves.
_SPAN_KEY: str = getattr(propagation, "_SPAN_KEY", "")
# The fastest way to the current context: the context variable's own getter, where the SDK uses one.
_current: Callable[[], Context] = getattr(
    getattr(getattr(context_api, "_RUNTIME_CONTEXT", None), "_current_context", None), "get", context_api.get_current
)
_SERVER, _CLIENT, _INTERNAL = SpanKind.SERVER, SpanKind.CLIENT, SpanKind.INTERNAL
_THIN = Flag.THIN
_NO_PARENT = Context()
_DROPPED: Any = SamplingResult(Decision.DROP)
# The word of a plan that only asks for another: no word in a table is negative.
_ASK = -1 << 8
_BY_OPERATION = Flag.VALID | Flag.OPERATIONS
_PLANS_MAX = 256  # of the rates of operations


def entry_kind(kind: SpanKind | None, attributes: Attributes) -> EntryKind:
    """Which kind of entry a span is, by the old and the new semantic conventions for HTTP, RPC and databases."""
    if not attributes:
        return EntryKind.INTERNAL
    if kind is SpanKind.SERVER:
        if "http.method" in attributes or "http.request.method" in attributes:
            return EntryKind.HTTP
        if attributes.get("rpc.system", attributes.get("rpc.system.name")) == "grpc":
            return EntryKind.GRPC
    elif kind is SpanKind.CLIENT and ("db.system" in attributes or "db.system.name" in attributes):
        return EntryKind.DB
    return EntryKind.INTERNAL


class Decider(sampling.Sampler):
    """Decides by rate words, which may change between any two decisions.

    The counts need no lock under the GIL: CPython (3.10 and later) switches threads at calls and backward jumps only,
    and `self._http_kept += 1` has neither. Without the GIL every decision runs under a lock.

    Args:
        default: the rate word that stands in for a word without VALID.

    Attributes:
        default: the same word.
        words: the eight words of a row, read anew in every decision; `obey` puts others in their place.
    """

    def __init__(self, default: int) -> None:
        self.default = default
        self.obey(array("Q", [default] * abi.ROW_WORDS))
        self._of_operations: dict[tuple[int, int], Plan] = {}
        self._plans = [make_plan(entry, default, default) for entry in EntryKind]
        self._set_roots()
        # Root spans are counted in attributes, which takes half as long as in a list; all others in the list.
        self._internal_dropped = self._http_dropped = self._grpc_dropped = self._db_dropped = 0
        self._internal_kept = self._http_kept = self._grpc_kept = self._db_kept = 0
        self._tally = [0] * abi.PAGE_COUNT_WORDS
        self._turns = [0] * abi.PAGE_TURN_WORDS
        if not _SPAN_KEY:
            self.should_sample = self._should_sample_portably  # type: ignore[method-assign]
        if not getattr(sys, "_is_gil_enabled", lambda: True)():
            self.should_sample = _locked(self.should_sample)  # type: ignore[method-assign]

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> Any:
        if parent_context is None:
            parent_context = _current()
        if parent_context and _SPAN_KEY in parent_context:
            return self._with_parent(parent_context[_SPAN_KEY], trace_id, name, kind, attributes)
        if kind is _SERVER and attributes:
            if "http.method" in attributes or "http.request.method" in attributes:
                word, threshold, kept = self._http
                if self.words[1] != word:
                    return self._root(1, trace_id, name, attributes)
                if threshold and trace_id & 0xFFFFFFFFFFFFFF < threshold:
                    self._http_dropped += 1
                    return _DROPPED
                self._http_kept += 1
                result = kept()
                result.attributes = attributes
                return result
            if "rpc.system" in attributes and attributes["rpc.system"] == "grpc":
                word, threshold, kept = self._grpc
                if self.words[2] != word:
                    return self._root(2, trace_id, name, attributes)
                if threshold and trace_id & 0xFFFFFFFFFFFFFF < threshold:
                    self._grpc_dropped += 1
                    return _DROPPED
                self._grpc_kept += 1
                result = kept()
                result.attributes = attributes
                return result
            if entry_kind(kind, attributes):
                return self._root(entry_kind(kind, attributes), trace_id, name, attributes)
        elif kind is _CLIENT and attributes:
            if "db.system" in attributes:
                word, threshold, kept = self._db
                if self.words[3] != word:
                    return self._root(3, trace_id, name, attributes)
                if threshold and trace_id & 0xFFFFFFFFFFFFFF < threshold:
                    self._db_dropped += 1
                    return _DROPPED
                self._db_kept += 1
                result = kept()
                result.attributes = attributes
                return result
            if entry_kind(kind, attributes):
                return self._root(entry_kind(kind, attributes), trace_id, name, attributes)
        word, threshold, kept = self._internal
        if self.words[0] != word:
            return self._root(0, trace_id, name, attributes)
        if threshold and trace_id & 0xFFFFFFFFFFFFFF < threshold:
            self._internal_dropped += 1
            return _DROPPED
        self._internal_kept += 1
        if not attributes:
            return self._bare
        result = kept()
        result.attributes = attributes
        return result

    def get_description(self) -> str:
        return f"Spandial{{default={abi.word_rate(self.default):g}%}}"

    def counts(self) -> list[int]:
        """The 32 counts since this was made, indexed as in the counter page."""
        counts = self._tally.copy()
        roots = (
            (self._internal_dropped, self._internal_kept),
            (self._http_dropped, self._http_kept),
            (self._grpc_dropped, self._grpc_kept),
            (self._db_dropped, self._db_kept),
        )
        for entry, (dropped, kept) in enumerate(roots):
            counts[entry * abi.PAGE_KIND_STRIDE] += dropped
            counts[entry * abi.PAGE_KIND_STRIDE + 1] += kept
        return counts

    def turns(self) -> list[int]:
        """For each kind, how often its rate word was found to be another one, and the decisions on spans with a remote
        parent before it last was."""
        return self._turns.copy()

    def obey(self, words: Sequence[int], operations: OperationRates | None = None) -> None:
        """From now on, obey these words of a row, and the rates of the operations that they point to."""
        self._obeyed = words, operations
        self.words = words

    def freeze(self) -> None:
        """From now on, obey copies of what is obeyed now."""
        words, operations = self._obeyed
        if operations is None:
            self.obey(tuple(words))
        else:
            self.obey(*operations.frozen())

    def _replan(self, entry: int, name: str, attributes: Attributes) -> Plan:
        """The plan for a span: that of its kind, or where there are rules by operation that of its operation.

        Where there are, the kind's own plan is one that only asks, by a word that is never found: each span comes here.
        """
        words, operations = self._obeyed
        word = words[entry]
        if word & _BY_OPERATION != _BY_OPERATION:
            return self._turn(entry, word)
        if self._plans[entry][0] != _ASK:
            self._turn(entry, _ASK)
        if operations is not None:
            found = operations.word(entry, name, attributes)
            word = word if found is None else found
        known = self._of_operations.get((entry, word))
        if known is None:
            if len(self._of_operations) >= _PLANS_MAX:
                self._of_operations = {}
            known = self._of_operations[entry, word] = make_plan(entry, word, self.default)
        return known

    def _turn(self, entry: int, word: int) -> Plan:
        plan = self._plans[entry] = make_plan(entry, word, self.default)
        self._set_roots()
        remote = entry * abi.PAGE_KIND_STRIDE + abi.PAGE_REMOTE
        self._turns[2 * entry] += 1
        self._turns[2 * entry + 1] = sum(self._tally[remote : remote + 2])
        return plan

    def _set_roots(self) -> None:
        self._internal, self._http, self._grpc, self._db = [plan[-1] for plan in self._plans]
        self._bare = self._plans[0][-2]

    def _root(self, entry: int, trace_id: int, name: str, attributes: Attributes) -> Any:
        """The decision on a root span whose kind is rare, or whose word is not the one before."""
        plan = self._plans[entry]
        if self.words[entry] != plan[0]:
            plan = self._replan(entry, name, attributes)
        _, _, count, _, threshold, _, _, _, _, (_, _, kept) = plan
        if trace_id & 0xFFFFFFFFFFFFFF < threshold:
            self._tally[count] += 1
            return _DROPPED
        self._tally[count + 1] += 1
        result = kept()
        result.attributes = attributes or NO_ATTRIBUTES
        return result

    def _should_sample_portably(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> Any:
        return self._with_parent(get_current_span(parent_context), trace_id, name, kind, attributes)

    def _with_parent(self, span: Any, trace_id: int, name: str, kind: SpanKind | None, attributes: Attributes) -> Any:
        try:
            remote, flags, trace_state, valid = span.get_span_context()[2:]
        except (AttributeError, TypeError, ValueError):
            valid = False  # what get_current_span makes of something that is no span
        if not valid:
            return Decider.should_sample(self, _NO_PARENT, trace_id, name, kind, attributes)
        if not attributes or kind is _INTERNAL:
            plan = self._plans[0]
        elif kind is _SERVER and "http.method" in attributes:
            plan = self._plans[1]
        else:
            plan = self._plans[entry_kind(kind, attributes)]
        word, entry, count, how, _, _, _, _, _, _ = plan
        if self.words[entry] != word:
            plan = self._replan(entry, name, attributes)
            how = plan[3]
        kept = flags & 1
        if remote:
            count += 2  # abi.PAGE_REMOTE
            if how:
                return weigh(plan, how, trace_id, kept, trace_state, attributes, self._tally, count)
        else:
            count += 4  # abi.PAGE_LOCAL
            if kept and how & _THIN:
                return weigh(plan, _THIN, trace_id, kept, trace_state, attributes, self._tally, count)
        if not kept:
            self._tally[count] += 1
            drop: Any = DroppedSpan()
            drop.trace_state = trace_state
            return drop
        self._tally[count + 1] += 1
        result: Any = KeptSpan()
        result.attributes = attributes or NO_ATTRIBUTES
        result.trace_state = trace_state
        return result


def _locked(should_sample: Callable[..., Any]) -> Callable[..., Any]:
    lock = threading.Lock()

    def renew() -> None:
        nonlocal lock
        lock = threading.Lock()

    def locked(*args: Any, **kwargs: Any) -> Any:
        with lock:
            return should_sample(*args, **kwargs)

    os.register_at_fork(after_in_child=renew)  # the thread that held the lock does not exist in the child
    return locked
