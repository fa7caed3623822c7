"""What a rate word means for the sampler: worked out once each time the word changes, used in every decision."""

from __future__ import annotations

from collections.abc import MutableSequence
from types import MappingProxyType
from typing import Any

from opentelemetry.sdk.trace.sampling import Decision, SamplingResult
from opentelemetry.trace import TraceState

from spandial import abi
from spandial.abi import Flag, Mode
from spandial.decision import format_threshold, parse_randomness, parse_threshold, without_threshold

__all__ = ["NO_ATTRIBUTES", "DroppedSpan", "KeptSpan", "Plan", "make_plan", "weigh"]

NO_ATTRIBUTES: Any = MappingProxyType({})


class KeptSpan(SamplingResult):
    """A kept span's result. Made without a Python-level constructor, which would be a third of a decision."""

    __slots__ = ("attributes", "trace_state")
    attributes: Any  # the SDK reads any mapping, once; the base class makes a read-only one of it
    __init__ = object.__init__
    decision = Decision.RECORD_AND_SAMPLE


class DroppedSpan(SamplingResult):
    """A dropped span's result, where there is a tracestate to pass on."""

    __slots__ = ("trace_state",)
    __init__ = object.__init__
    decision = Decision.DROP
    attributes = NO_ATTRIBUTES


# What a word means, worked out once each time it changes: the word, the kind of entry, the threshold, where to count a
# dropped root, and how to keep one. Plain tuples: they are unpacked in every decision.
Plan = tuple[int, int, int, int, "_Keep"]
# Where to count a kept root, the class of its result, the result itself for a span without attributes, mode and THIN,
# and the value of `th`.
_Keep = tuple[int, type[Any], Any, int, str]
_HOW = abi.MODE_MASK | Flag.THIN
_THIN, _STRICT = Flag.THIN, int(Mode.STRICT)
_BOOST_OR_STRICT = Mode.BOOST | Mode.STRICT
_STRICT_OR_THIN = _STRICT | _THIN


def make_plan(entry: int, word: int, default: int) -> Plan:
    """The plan of one kind of entry's word; default stands in for a word without VALID."""
    meant = word if word & Flag.VALID else default
    threshold = abi.threshold_of(meant)
    th = format_threshold(threshold)

    class KeptRoot(SamplingResult):
        __slots__ = ("attributes",)
        __init__ = object.__init__
        decision = Decision.RECORD_AND_SAMPLE

    KeptRoot.trace_state = TraceState([("ot", th)])
    bare: Any = KeptRoot()
    bare.attributes = NO_ATTRIBUTES
    how = meant & _HOW
    if how & abi.MODE_MASK == abi.MODE_MASK:  # no mode at all
        how &= ~abi.MODE_MASK
    elif how == Mode.BOOST | _THIN:  # a remote parent settles nothing, kept or dropped
        how = _STRICT | _THIN
    count = entry * abi.PAGE_KIND_STRIDE
    return word, entry, threshold, count, (count + 1, KeptRoot, bare, how, th)


# W3C Trace Context, 3.3.1.3.2: readers discard the whole tracestate for one value that is longer.
_VALUE_MAX = 256
_PLAIN_TRACE_STATE = isinstance(getattr(TraceState(), "_dict", None), dict)


class _Changed(TraceState):
    """A tracestate with another `th`, worked out when it is first read: most never are, and working it out costs more
    than a decision."""

    __init__ = object.__init__
    before: TraceState
    plan: Plan
    how: int

    def __getattr__(self, name: str) -> Any:
        if name != "_dict":
            raise AttributeError(name)
        self._dict = _change_threshold(self.before, self.plan, self.how)
        return self._dict


# What becomes of the parent's `th`: it stays, goes, or meets the plan's: the lower, the higher, the plan's in any case.
_AS_IT_IS, _REMOVE, _LOWER, _HIGHER, _OWN = range(5)


def _change_threshold(before: TraceState, plan: Plan, how: int) -> dict[str, str]:
    """Tracestate's members with `th` replaced; `ot` first, as a changed member must be (W3C Trace Context, 3.5)."""
    _, _, threshold, _, (_, _, _, _, th) = plan
    old = before.get("ot", "")
    if how in (_LOWER, _HIGHER):
        parents = parse_threshold(old)
        if parents is None or parents == threshold or (parents < threshold) == (how == _LOWER):
            return dict(before)
    elif how == _REMOVE:
        th = ""
    rest = without_threshold(old)
    ot = f"{th};{rest}" if th and rest else th or rest
    if len(ot) > _VALUE_MAX:
        ot = rest
    others = {key: value for key, value in before.items() if key != "ot"}
    if len(others) >= 32:  # W3C Trace Context, 3.3.1.1
        return others
    return {"ot": ot, **others} if ot else others


def _set_threshold(before: TraceState, plan: Plan, how: int) -> TraceState:
    if not _PLAIN_TRACE_STATE:
        return TraceState(list(_change_threshold(before, plan, how).items()))
    changed: Any = _Changed()
    changed.before = before
    changed.plan = plan
    changed.how = how
    return changed  # type: ignore[no-any-return]


def weigh(
    plan: Plan,
    how: int,
    trace_id: int,
    parent_kept: int,
    trace_state: TraceState,
    attributes: Any,
    tally: MutableSequence[int],
    count: int,
) -> SamplingResult:
    """The decision for a parent that does not settle it alone, counted.

    The threshold passed on is the one by which a span of this service is kept: this service's own, the lower of the
    two where either suffices (boost), the higher where both must agree (thin); unknown where the parent's is.

    Args:
        how: the plan's mode and THIN for a remote parent, THIN alone for a local one, which no mode overrides.
        tally, count: where a dropped span is counted; a kept one is counted in the next place.
    """
    threshold = plan[2]
    members = trace_state._dict if _PLAIN_TRACE_STATE else trace_state
    ot = members["ot"] if "ot" in members else ""  # noqa: SIM401 - a method call costs twice as much
    randomness = parse_randomness(ot) if threshold and ot else None
    hit = not threshold or (trace_id & 0xFFFFFFFFFFFFFF if randomness is None else randomness) >= threshold
    change = _AS_IT_IS
    if not parent_kept:
        kept = hit and how & _BOOST_OR_STRICT
        if kept:
            change = _OWN
    elif hit:
        kept = 1
        if how & _STRICT:
            change = _OWN
        elif "th:" in ot:
            change = _HIGHER if how & _THIN else _LOWER
    else:
        kept = not how & _STRICT_OR_THIN
        if not kept and "th:" in ot:
            change = _REMOVE
    if change:
        trace_state = _set_threshold(trace_state, plan, change) if members else plan[4][2].trace_state
    if not kept:
        tally[count] += 1
        drop: Any = DroppedSpan()
        drop.trace_state = trace_state
        return drop  # type: ignore[no-any-return]
    tally[count + 1] += 1
    keep: Any = KeptSpan()
    keep.attributes = attributes or NO_ATTRIBUTES
    keep.trace_state = trace_state
    return keep  # type: ignore[no-any-return]
