"""What is known of a service by its name alone. Pure.

The protocols that other SDKs speak name a service and nothing else. What all of its known processes agree on holds for
whoever asks by that name; where they differ, nobody can tell who asks, and the label is taken for unknown.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import reduce

from spandial.labels import Labels

__all__ = ["agreed", "agreed_by_service", "whole_per_second"]

_INT32_MAX = (1 << 31) - 1


def agreed(labels: Iterable[Labels], asked: Labels) -> Labels:
    """The labels that all processes have of which these are true: a service, and perhaps a version or an env; what was
    asked for where there are none."""
    return reduce(_common, (each for each in labels if _is(each, asked)), None) or asked


def agreed_by_service(labels: Iterable[Labels]) -> dict[str, Labels]:
    """For every service that has a name, the labels that all of its processes have."""
    found: dict[str, Labels] = {}
    for each in labels:
        if each.service:
            found[each.service] = _common(found.get(each.service), each)
    return found


def whole_per_second(target: float) -> int:
    """A throughput as protocols have it that know whole numbers only: never none where some were asked for."""
    return min(max(math.floor(target + 0.5), 1), _INT32_MAX) if target > 0 else 0


def _is(labels: Labels, asked: Labels) -> bool:
    return labels.service == asked.service and all(want in ("", have) for have, want in zip(labels[1:3], asked[1:3]))


def _common(known: Labels | None, other: Labels) -> Labels:
    if known is None or known == other:
        return other
    version, env, tenant = (mine if mine == yours else "" for mine, yours in zip(known[1:4], other[1:4]))
    others = set(other.others)
    return Labels(known.service, version, env, tenant, tuple(pair for pair in known.others if pair in others))
