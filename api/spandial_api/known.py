"""What is known of a service by its name alone. Pure.

The protocols that other SDKs speak name a service and nothing else. What all of its known processes agree on holds for
whoever asks by that name; where they differ, nobody can tell who asks, and the label is taken for unknown.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import reduce

from spandial.labels import Labels
from spandial_api.selectors import Selector

__all__ = ["agreed", "agreed_by_service", "answers_to", "reduced", "selected_by", "whole_per_second"]

_FIELDS = ("version", "env", "tenant")
_INT32_MAX = (1 << 31) - 1


def agreed(labels: Iterable[Labels], asked: Labels) -> Labels:
    """The labels that all processes have of which these are true: a service, and perhaps a version or an env; what was
    asked for where there are none."""
    return reduce(_common, (each for each in labels if answers_to(each, asked)), None) or asked


def agreed_by_service(labels: Iterable[Labels]) -> dict[str, Labels]:
    """For every service that has a name, the labels that all of its processes have."""
    found: dict[str, Labels] = {}
    for each in labels:
        if each.service:
            found[each.service] = _common(found.get(each.service), each)
    return found


def selected_by(selectors: Iterable[Selector]) -> frozenset[str]:
    """The labels, other than the service, that any of these looks at."""
    found: set[str] = set()
    for selector in selectors:
        found.update(name for name in _FIELDS if getattr(selector, name) is not None)
        found.update(f"label.{name}" for name, _ in selector.labels)
    return frozenset(found)


def reduced(labels: Labels, names: frozenset[str]) -> Labels:
    """Labels without those that nobody looks at: an instance's id tells no process apart."""
    version, env, tenant = (getattr(labels, name) if name in names else "" for name in _FIELDS)
    others = tuple(pair for pair in labels.others if f"label.{pair[0]}" in names)
    return Labels(labels.service, version, env, tenant, others)


def whole_per_second(target: float) -> int:
    """A throughput as protocols have it that know whole numbers only: never none where some were asked for."""
    return min(max(math.floor(target + 0.5), 1), _INT32_MAX) if target > 0 else 0


def answers_to(labels: Labels, asked: Labels) -> bool:
    """Whether these are of the service that is asked for, and of the version and env where they are given."""
    return labels.service == asked.service and all(want in ("", have) for have, want in zip(labels[1:3], asked[1:3]))


def _common(known: Labels | None, other: Labels) -> Labels:
    if known is None or known == other:
        return other
    version, env, tenant = (mine if mine == yours else "" for mine, yours in zip(known[1:4], other[1:4]))
    others = set(other.others)
    return Labels(known.service, version, env, tenant, tuple(pair for pair in known.others if pair in others))
