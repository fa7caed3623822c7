"""The sampling decision; `bpf/decision.h` is the same function in C."""

from __future__ import annotations

import re

from spandial.abi import MODE_MASK, Flag, Mode, Parent

__all__ = ["choose_word", "decide", "parse_ot", "parse_rate", "with_threshold"]

_RV = re.compile(r"[0-9a-f]{14}")
_TH = re.compile(r"[0-9a-f]{1,14}")
_RATE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(?:[eE]([+-]?\d{1,3}))?\s*%?")


def choose_word(own: int, fallback: int, lease_deadline_ns: int, now_ns: int) -> int:
    """The word to obey: the entry kind's own, or the row's fallback once the lease has run out."""
    return own if now_ns < lease_deadline_ns else fallback


def decide(word: int, randomness: int, parent: Parent) -> bool:
    """Whether to keep an entry.

    A word without VALID keeps nothing: its reader must have chosen a default of its own before.

    Args:
        word: the rate word, 64 bits.
        randomness: 56 bits.
        parent: what is known of the parent.
    """
    if not word & Flag.VALID:
        return False
    hit = not word & Flag.NEVER and randomness >= word >> 8
    thin = bool(word & Flag.THIN)
    mode = word & MODE_MASK
    if parent == Parent.NONE:
        return hit
    if parent == Parent.LOCAL_KEPT:
        return hit if thin else True
    if parent == Parent.REMOTE_KEPT:
        return hit if thin or mode == Mode.STRICT else True
    if parent == Parent.REMOTE_DROPPED:
        return hit if mode in (Mode.BOOST, Mode.STRICT) else False
    return False


def parse_rate(text: str | float) -> float:
    """A rate as a person writes it, `30`, `0.1` or `30%`, as a percentage 0-100.

    Raises ValueError that says what was received.
    """
    match = _RATE.fullmatch(str(text).strip())
    rate = float(str(text).strip().rstrip("%")) if match else -1.0
    if not 0 <= rate <= 100:
        raise ValueError(f"rate must be a percentage from 0 to 100, such as 30, 0.1 or 30%; received {text!r}")
    return rate


def parse_ot(value: str) -> tuple[int | None, int | None]:
    """Threshold and randomness of tracestate's `ot` member, each None where it is absent or malformed.

    OpenTelemetry, TraceState Handling: `th` drops trailing zeros, `rv` has exactly 14 digits, both lower-case.
    """
    threshold = randomness = None
    first = True
    for member in value.split(";"):
        if member.startswith("th:") and _TH.fullmatch(member, 3):
            threshold = int(member[3:].ljust(14, "0"), 16)
        elif member.startswith("rv:") and first:
            first = False
            if _RV.fullmatch(member, 3):
                randomness = int(member[3:], 16)
    return threshold, randomness


def with_threshold(value: str, threshold: int | None) -> str:
    """`ot` with its `th` replaced, or removed where threshold is None; every other member stays."""
    members = [member for member in value.split(";") if member and not member.startswith("th:")]
    if threshold is not None:
        members.insert(0, "th:" + (f"{threshold:014x}".rstrip("0") or "0"))
    return ";".join(members)
