"""Spans of time as people write them: `90s`, `10m`, `1h30m`, `2d`."""

from __future__ import annotations

import re

__all__ = ["format_duration", "parse_duration"]

_UNITS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_DURATION = re.compile("".join(rf"(?:(\d{{1,9}}(?:\.\d{{1,9}})?){unit})?" for unit in _UNITS), re.ASCII)
_LONGEST_S = 366 * 86_400


def parse_duration(text: str) -> float:
    """Seconds, at least one and at most 366 days. Raises ValueError for anything else, with what was received."""
    match = _DURATION.fullmatch(text.strip())
    seconds = sum(float(number) * unit for number, unit in zip(match.groups("0"), _UNITS.values())) if match else 0.0
    if not 1 <= seconds <= _LONGEST_S:
        raise ValueError(f"a time from 1s to 366d, such as 90s, 10m or 1h30m; received {text!r}")
    return seconds


def format_duration(seconds: float) -> str:
    """The two greatest units that are not zero, rounded down: `1h30m`, `59s`; `0s` for what is over."""
    left, parts = int(max(seconds, 0)), []
    for unit, size in _UNITS.items():
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts[:2]) or "0s"
