"""What a rate word means for the sampler: worked out once each time the word changes, used in every decision."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from opentelemetry.sdk.trace.sampling import Decision, SamplingResult
from opentelemetry.trace import TraceState

from spandial import abi
from spandial.abi import Flag, Mode
from spandial.decision import format_threshold, parse_randomness, parse_threshold, without_threshold

__all__ = ["NO_ATTRIBUTES", "Plan", "make_plan", "weigh"]

NO_ATTRIBUTES: Any = MappingProxyType({})

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


# How the `th` of a plan meets the parent's, where it is not removed: the lower, the higher, or the plan's in any case.
_REMOVE, _LOWER, _HIGHER, _OWN = range(4)


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


def weigh(plan: Plan, how: int, trace_id: int, parent_kept: int, trace_state: TraceState) -> tuple[bool, TraceState]:
    """The decision for a parent that does not settle it alone, and the tracestate to pass on.

    How is the plan's mode and THIN for a remote parent, and THIN alone for a local one, which no mode overrides.

    The threshold passed on is the one by which a span of this service is kept: this service's own, the lower of the
    two where either suffices (boost), the higher where both must agree (thin); unknown where the parent's is.
    """
    threshold = plan[2]
    members = trace_state._dict if _PLAIN_TRACE_STATE else trace_state
    ot = members["ot"] if "ot" in members else ""  # noqa: SIM401 - a method call costs twice as much
    randomness = parse_randomness(ot) if threshold and ot else None
    hit = not threshold or (trace_id & 0xFFFFFFFFFFFFFF if randomness is None else randomness) >= threshold
    if not parent_kept:
        if not hit or not how & _BOOST_OR_STRICT:
            return False, trace_state
    elif not hit:
        if not how & _STRICT_OR_THIN:
            return True, trace_state
        return False, _set_threshold(trace_state, plan, _REMOVE) if "th:" in ot else trace_state
    elif not how & _STRICT:
        if "th:" not in ot:
            return True, trace_state
        return True, _set_threshold(trace_state, plan, _HIGHER if how & _THIN else _LOWER)
    if not members:
        return True, plan[4][2].trace_state
    return True, _set_threshold(trace_state, plan, _OWN)
