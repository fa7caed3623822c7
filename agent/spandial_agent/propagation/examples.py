"""Requests that left one process, and requests that came to another: is it the same ones? Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from math import exp, expm1, log
from typing import NamedTuple

__all__ = ["Evidence", "Example", "weigh"]

_ON_THE_WAY_NS = 1_000_000_000  # a proxy passes a request on within so long
_SLACK_NS = 100_000  # a request may be received before its sending is over


class Example(NamedTuple):
    """A request of HTTP/1 as the kernel saw it, sent or received.

    Attributes:
        sent: the process sent it, as opposed to received.
        time_ns: CLOCK_BOOTTIME.
        trace_id: 0 without a trace context.
    """

    sent: bool
    time_ns: int
    method: str
    path: str
    trace_id: int


class Evidence(NamedTuple):
    """What became of a client's calls.

    Attributes:
        arrived: how many came to the server with their trace.
        lost: the call that was followed the soonest by a request like it without any; None if none was.
        chance: an upper bound of the probability that as many calls would be followed as soon if the two processes had
            nothing to do with each other.
    """

    arrived: int
    lost: Example | None
    chance: float


def weigh(
    client: Sequence[Example], server: Sequence[Example], begin_ns: int, end_ns: int, *, none_traced: bool
) -> Evidence:
    """What the calls of one process with a trace context and the requests that another received have in common.

    A request is like a call if it has the same method, and a path that is the same or one of the two the end of the
    other: a proxy may take a prefix off, or put one before it.

    Args:
        client, server: their examples, in any order.
        begin_ns, end_ns: between these the examples are complete. What was on its way at the end says nothing, unless
        none_traced: the server received no request with a trace context at all.
    """
    calls = sorted(one for one in client if one.sent and one.trace_id and one.time_ns <= end_ns)
    entries = [one for one in server if not one.sent and one.time_ns <= end_ns]
    traces = {entry.trace_id for entry in entries}
    arrived = sum(call.trace_id in traces for call in calls)
    settled = [
        call
        for call in calls
        if call.trace_id not in traces and (none_traced or call.time_ns + _ON_THE_WAY_NS <= end_ns)
    ]
    untraced: dict[tuple[str, str], list[int]] = {}
    for entry in entries:
        if not entry.trace_id and entry.path:
            untraced.setdefault((entry.method, entry.path), []).append(entry.time_ns)
    followed = _followed(settled, untraced, max(end_ns - begin_ns, 1))
    if not followed:
        return Evidence(arrived, None, 1.0)
    followed.sort(key=lambda found: found[0])
    return Evidence(arrived, followed[0][1], _chance([found[0] for found in followed], len(settled)))


def _followed(
    calls: Sequence[Example], untraced: dict[tuple[str, str], list[int]], window_ns: int
) -> list[tuple[float, Example]]:
    """Calls that a request like them followed, each with the probability that one would come so soon by chance: if they
    come independently of the calls, and as often."""
    like: dict[tuple[str, str], list[int]] = {}
    taken: dict[tuple[str, str], int] = {}
    followed = []
    for call in calls:
        key = call.method, call.path
        if key not in like:
            like[key] = sorted(
                time
                for (method, path), times in untraced.items()
                if method == call.method and (path.endswith(call.path) or call.path.endswith(path))
                for time in times
            )
        times = like[key]
        begin_ns = call.time_ns - _SLACK_NS
        at = max(bisect_left(times, begin_ns), taken.get(key, 0))
        if call.path and at < len(times) and times[at] - call.time_ns <= _ON_THE_WAY_NS:
            taken[key] = at + 1  # one request follows one call
            followed.append((-expm1(-(times[at] - begin_ns) * len(times) / window_ns), call))
    return followed


def _chance(probabilities: Sequence[float], calls: int) -> float:
    """That of so many independent calls some would have such small probabilities, the smallest first.

    The m-th smallest of n uniform numbers is below u as probably as a binomial variable of n and u is m or more:
    at most exp(-n KL(m/n || u)) (Chernoff's bound); and n times that for the best of all m (Bonferroni).
    """
    best = 0.0
    for m, u in enumerate(probabilities, 1):
        share = m / calls
        if 0.0 < u < share:
            rest = (1 - share) * log((1 - share) / (1 - u)) if share < 1 else 0.0
            best = max(best, calls * (share * log(share / u) + rest))
    return min(1.0, calls * exp(-best))
