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

__all__ = ["NO_ATTRIBUTES", "DroppedSpan", "KeptSpan", "Plan", "Root", "make_plan", "weigh"]

NO_ATTRIBUTES: Any = MappingProxyType({})


class _Result:
    """What a SamplingResult is to its readers, without its constructor and its __dict__: they would be a third of a
    decision."""

    __slots__ = ()
    __class__ = property(lambda self: SamplingResult)
    __repr__ = SamplingResult.__repr__


class KeptSpan(_Result):
    """A kept span's result."""

    __slots__ = ("attributes", "trace_state")
    attributes: Any  # the SDK reads any mapping, once; SamplingResult makes a read-only one of it
    decision = Decision.RECORD_AND_SAMPLE


class DroppedSpan(_Result):
    """A dropped span's result, where there is a tracestate to pass on."""

    __slots__ = ("trace_state",)
    decision = Decision.DROP
    attributes = NO_ATTRIBUTES


# How to decide a root span, unpacked in every decision, so a plain tuple: the word, the threshold, and the class of a
# kept span's result.
Root = tuple[int, int, type[Any]]
# What the word of one kind of entry means: the word, the kind, where to count a dropped root (a kept one in the next
# place), mode and THIN as far as they concern a remote parent, the threshold, the same as `rv` is written, as `ot`'s
# member, as the whole tracestate, the result of a kept root without attributes, and how to decide a root.
Plan = tuple[int, int, int, int, int, str, str, TraceState, Any, Root]
_HOW = abi.MODE_MASK | Flag.THIN
_THIN, _STRICT = Flag.THIN, int(Mode.STRICT)
_BOOST_OR_STRICT = Mode.BOOST | Mode.STRICT
_STRICT_OR_THIN = _STRICT | _THIN


def make_plan(entry: int, word: int, default: int) -> Plan:
    """The plan of one kind of entry's word; default stands in for a word without VALID."""
    meant = word if word & Flag.VALID else default
    threshold = abi.threshold_of(meant)
    th = format_threshold(threshold)
    passed_on = TraceState([("ot", th)])

    class KeptRoot(_Result):
        __slots__ = ("attributes",)
        decision = Decision.RECORD_AND_SAMPLE
        trace_state = passed_on

    bare: Any = KeptRoot()
    bare.attributes = NO_ATTRIBUTES
    how = meant & _HOW
    if how & abi.MODE_MASK == abi.MODE_MASK:  # no mode at all
        how &= ~abi.MODE_MASK
    elif how == Mode.BOOST | _THIN:  # a remote parent settles nothing, kept or dropped
        how = _STRICT | _THIN
    count = entry * abi.PAGE_KIND_STRIDE
    digits = f"{threshold:014x}" if threshold <= abi.RANDOMNESS_MASK else "g"  # above all that rv may be
    return word, entry, count, how, threshold, digits, th, passed_on, bare, (word, threshold, KeptRoot)


# W3C Trace Context, 3.3.1.3.2: readers discard the whole tracestate for one value that is longer.
_VALUE_MAX = 256
_PLAIN_TRACE_STATE = isinstance(getattr(TraceState(), "_dict", None), dict)


class _Changed(TraceState):
    """A tracestate with another `th`, worked out when it is first read: most never are, and working it out costs more
    than a decision."""

    __init__ = object.__init__
    change: tuple[TraceState, int, str, int]

    def __getattr__(self, name: str) -> Any:
        if name != "_dict":
            raise AttributeError(name)
        self._dict = _change_threshold(*self.change)
        return self._dict


# What becomes of the parent's `th`: it stays, goes, or meets the plan's: the lower, the higher, the plan's in any case.
_AS_IT_IS, _REMOVE, _LOWER, _HIGHER, _OWN = range(5)


def _change_threshold(before: TraceState, threshold: int, th: str, how: int) -> dict[str, str]:
    """Tracestate's members with `th` replaced; `ot` first, as a changed member must be (W3C Trace Context, 3.5)."""
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
    _, _, _, _, threshold, digits, th, own_state, _, _ = plan
    members = trace_state._dict if _PLAIN_TRACE_STATE else trace_state
    ot = members["ot"] if "ot" in members else ""  # noqa: SIM401 - a method call costs twice as much
    if not threshold:
        hit = True
    elif "rv:" not in ot:
        hit = trace_id & 0xFFFFFFFFFFFFFF >= threshold
    else:
        first, _, rest = ot.partition(";rv:")
        if len(rest) == 14 and "rv:" not in first and not rest.strip("0123456789abcdef"):
            hit = rest >= digits  # the usual shape: as text it compares as the number does
        else:
            randomness = parse_randomness(ot)
            hit = (trace_id & 0xFFFFFFFFFFFFFF if randomness is None else randomness) >= threshold
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
        if not members:
            trace_state = own_state
        elif _PLAIN_TRACE_STATE:
            changed: Any = _Changed()
            changed.change = trace_state, threshold, th, change
            trace_state = changed
        else:
            trace_state = TraceState(list(_change_threshold(trace_state, threshold, th, change).items()))
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
