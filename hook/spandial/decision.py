"""The sampling decision; `bpf/decision.h` is the same function in C."""

from __future__ import annotations

import re

from spandial.abi import MODE_MASK, Flag, Mode, Parent

__all__ = [
    "choose_word",
    "decide",
    "format_threshold",
    "parse_randomness",
    "parse_rate",
    "parse_threshold",
    "without_threshold",
]

_HEX = "0123456789abcdef"
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


def parse_randomness(ot: str) -> int | None:
    """`rv` of tracestate's member `ot`; None where it is absent or malformed.

    OpenTelemetry, TraceState: Probability Sampling: exactly 14 lower-case hexadecimal digits. The first `rv` counts.
    """
    at = ot.find("rv:")
    if at < 0:
        return None
    if at and ot[at - 1] != ";":
        return next((parse_randomness(member) for member in ot.split(";") if member.startswith("rv:")), None)
    end = at + 17
    if len(ot) != end and ot[end : end + 1] != ";":
        return None
    digits = ot[at + 3 : end]
    # int() alone would take signs, blanks, underscores and capitals.
    return None if digits.strip(_HEX) else int(digits, 16)


def parse_threshold(ot: str) -> int | None:
    """`th` of `ot` as a threshold; None where it is absent or malformed.

    1 to 14 lower-case hexadecimal digits, trailing zeros dropped. The first `th` counts.
    """
    for member in ot.split(";"):
        if member.startswith("th:"):
            digits = member[3:]
            valid = 1 <= len(digits) <= 14 and not digits.strip(_HEX)
            return int(digits, 16) << 4 * (14 - len(digits)) if valid else None
    return None


def without_threshold(ot: str) -> str:
    """All members of `ot` but `th`."""
    if ot.startswith("th:"):  # where this project and the SDK put it
        ot = ot.partition(";")[2]
        if "th:" not in ot:
            return ot
    return ";".join([member for member in ot.split(";") if not member.startswith("th:")])


def format_threshold(threshold: int) -> str:
    """`th` of a threshold, without its trailing zeros."""
    return "th:" + (f"{threshold:014x}".rstrip("0") or "0")
