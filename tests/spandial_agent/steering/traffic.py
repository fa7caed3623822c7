"""Simulated traffic of one service under a rate, window by window, as kernel and hook count it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import NamedTuple

from spandial.abi import Mode
from spandial_agent.steering.throughput import Throughput, Window
from spandial_api.rules import Rule

__all__ = ["Mix", "Second", "Simulation"]


class Mix(NamedTuple):
    """What the entries are, as shares of all of them.

    Attributes:
        traced: with a remote parent.
        parents_kept: of the traced.
        by_operation: without a parent, and dropped by a rule of their own.
    """

    traced: float = 0.0
    parents_kept: float = 0.0
    by_operation: float = 0.0


class Second(NamedTuple):
    """What happened in a window.

    Attributes:
        expected: what would have been kept a second, but for chance.
    """

    at: float
    rate: float
    kept: float
    expected: float


class Simulation:
    """A service that a rule with a target is for.

    Args:
        noise: how a count comes from its mean; `exact` without any.
    """

    def __init__(self, rule: Rule, *, mix: Mix | None = None, seed: int | None = None, window_s: float = 0.5) -> None:
        self.rule, self.mix, self.window_s = rule, mix or Mix(), window_s
        self.steered = Throughput(rule)
        self.now = 0.0
        self._rng = random.Random(seed) if seed is not None else None
        self._left = 0.0

    def run(self, seconds: float, load: float | Callable[[float], float]) -> list[Second]:
        """So many seconds under a load in requests/s, or one that is a function of the time since the beginning."""
        end, seen = self.now + seconds, []
        while self.now < end - 1e-9:
            seen.append(self._window(load(self.now) if callable(load) else load))
        return seen

    def _window(self, load: float) -> Second:
        rate, rule, mix, length = self.steered.rate / 100, self.rule, self.mix, self.window_s
        requests = self._count(load * length, carry=True)
        traced = self._share(requests, mix.traced)
        parents = self._share(traced, mix.parents_kept)
        others = self._share(requests - traced, mix.by_operation)
        thins = rule.selector.protocol is not None
        strict, boost = rule.mode == Mode.STRICT, rule.mode == Mode.BOOST
        of_kept = rate if strict or thins else 1.0
        of_dropped = rate if strict or boost else 0.0
        untraced_kept = self._share(requests - traced - others, rate)
        traced_kept = self._share(parents, of_kept) + self._share(traced - parents, of_dropped)
        expected = rate * load * (1 - mix.traced) * (1 - mix.by_operation) + load * mix.traced * (
            mix.parents_kept * of_kept + (1 - mix.parents_kept) * of_dropped
        )
        at, self.now = self.now, self.now + length
        self.steered.add(
            Window(
                length, requests - traced, untraced_kept, traced, traced_kept, rate * (requests - traced), rate * traced
            )
        )
        return Second(at, rate * 100, (untraced_kept + traced_kept) / length, expected)

    def _count(self, mean: float, *, carry: bool = False) -> float:
        if self._rng is None:
            if not carry:
                return mean
            whole = math.floor(mean + self._left)  # requests come whole, evenly
            self._left += mean - whole
            return whole
        if mean > 100:
            return max(0, round(self._rng.gauss(mean, math.sqrt(mean))))
        count, product, limit = 0, self._rng.random(), math.exp(-mean)
        while product > limit:
            count, product = count + 1, product * self._rng.random()
        return count

    def _share(self, count: float, share: float) -> float:
        """How many of so many, each with this chance."""
        if self._rng is None or share in (0, 1) or not count:
            return count * share
        deviation = math.sqrt(count * share * (1 - share))
        if deviation > 5:
            return min(max(0, round(self._rng.gauss(count * share, deviation))), count)
        if count > 2000:
            return min(self._count(count * share), count)
        return sum(self._rng.random() < share for _ in range(round(count)))
