"""Rules with a target: which rate keeps so many entries a second. Pure: counts and durations are arguments."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from spandial.abi import Mode
from spandial_agent.steering.arrivals import Arrivals, deviation
from spandial_api.rules import Rule

__all__ = ["FIRST_RATE", "Load", "Throughput", "Window", "load_of"]

FIRST_RATE = 1.0  # percent, until a rule's entries have been counted

_KNOWN = 2000  # entries by which a share is known: to 2 %
_DOUBT = 200  # entries that it takes to believe that a share is not the one expected
_NEARLY_ALL = 0.95  # above this rate, what was forced cannot be told from what was drawn
_STEP = 5.0  # standard deviations by which a share has changed, and not by chance
_DEAD_BAND = 0.02
_PEAK_S = 30.0  # half of a peak is forgotten in this time
_FLOOD = 16.0  # times the target, of a load that was here before
_SILENCE_S = 60.0  # in which a rate doubles that nothing is counted under


class Window(NamedTuple):
    """What was counted of entries of one kind, or of several, in a time. Rates are shares 0-1.

    Attributes:
        traced: those with a remote parent's decision.
        by_rate, traced_by_rate: entries without and with such a decision, each times the rate that held for it; None
            where the rate was changed meanwhile.
    """

    seconds: float
    untraced: float = 0
    untraced_kept: float = 0
    traced: float = 0
    traced_kept: float = 0
    by_rate: float | None = 0
    traced_by_rate: float | None = 0

    @classmethod
    def together(cls, windows: Iterable[Window]) -> Window:
        """Of the same time."""
        windows = list(windows)
        if len(windows) == 1:
            return windows[0]
        sums = [sum(column) for column in zip(*(window[1:5] for window in windows))]
        by_rate = [None if None in column else sum(column) for column in zip(*(window[5:] for window in windows))]
        return cls(windows[0].seconds, *sums, *by_rate)


class Load(NamedTuple):
    """What a rule's entries are, each a second.

    Attributes:
        forced: kept whatever the rate is: their callers kept them.
        drawn: decided by the rate.
    """

    forced: float
    drawn: float

    def kept(self, rate: float) -> float:
        """Kept entries a second at a rate, a percentage."""
        return self.forced + self.drawn * rate / 100


def load_of(mode: Mode, thins: bool, untraced: float, traced: float, kept: float, rate: float) -> Load:
    """How entries divide under a mode, from what was kept of them at a rate (a share 0-1).

    Of those with a remote parent it is not known how many parents were kept. In mode follow the kept ones tell; in
    boost, kept = forced + rate * (traced - forced); in strict it does not matter, nor where children are thinned, for
    then the rate decides, in follow for the kept parents' only: kept = rate * drawn.

    Args:
        traced: entries with a remote parent.
        kept: those of them that were kept.
    """
    if mode == Mode.STRICT or (mode == Mode.BOOST and thins):
        return Load(0, untraced + traced)
    if mode == Mode.BOOST:
        if rate > _NEARLY_ALL:
            return Load(0, untraced + traced)
        forced = min(max((kept - rate * traced) / (1 - rate), 0), kept)
        return Load(forced, untraced + traced - forced)
    if thins:
        return Load(0, untraced + (min(kept / rate, traced) if rate else traced))
    return Load(kept, untraced)


class _Share:
    """A share of entries that shows in a count: count = fixed + share * rest, over the last thousands counted."""

    def __init__(self, expected: float, doubt: float) -> None:
        self._part, self._whole = expected * doubt, doubt

    def add(self, count: float, fixed: float, rest: float) -> None:
        if deviation(count, fixed + self.value * rest) > _STEP:
            self._part = self._whole = 0.0
        left = math.exp(-count / _KNOWN)
        self._part, self._whole = self._part * left + count - fixed, self._whole * left + rest

    @property
    def value(self) -> float:
        return max(self._part / self._whole, 0.0) if self._whole else 0.0


class Throughput:
    """Steers one service's rate under a rule with a target.

    The rate is worked out, not felt for: target less what is forced, by what is drawn, each as `Arrivals` knows it. So
    there is no loop that could swing, and a step in load is answered with the window after it. What the model does not
    know (rules by operation, operations that share their request's decision) shows in how much of what was drawn is
    really kept, and is learnt from the last two thousand of them.

    Load that falls away may come back. The rate rises as the load falls, but only so far that the load that was, should
    it be back at once, is kept at 16 times the target until the next window; half of it is forgotten in 30 s. And where
    nothing comes at all the rate rises from where it was, doubling in a minute.

    Attributes:
        rate: percentage that is to hold now.
        share: of the rule's target, where others steer by it too; None: all of it.
    """

    def __init__(self, rule: Rule) -> None:
        self.share: float | None = None
        self.rate = self._steered = max(FIRST_RATE, rule.floor)
        self._untraced, self._traced, self._kept = Arrivals(), Arrivals(), Arrivals()
        self._forced = _Share(0, 1)  # in boost, of the traced
        self._parents = _Share(1, 1)  # in follow that thins, of the traced
        self._drawn = _Share(1, _DOUBT)  # of what was expected to be kept by the rate
        self._peak = 0.0
        self.put(rule)

    def put(self, rule: Rule) -> None:
        """This rule is in force from now on, with what is known of the load."""
        self.rule = rule
        self._thins = rule.selector.protocol is not None
        if self._untraced.rate + self._traced.rate:
            self.rate = self._steered = self._wanted(0)

    def add(self, window: Window) -> None:
        """Steer by what came in a window, at whose end this is called."""
        self._untraced.add(window.untraced, window.seconds)
        self._traced.add(window.traced, window.seconds)
        self._kept.add(window.traced_kept, window.seconds)
        self._learn(window)
        self._steered = self._wanted(window.seconds)
        if abs(self._steered - self.rate) > _DEAD_BAND * self.rate or self._steered in (100, self.rule.floor):
            self.rate = self._steered

    @property
    def load(self) -> Load:
        """What the rule's entries are now."""
        untraced, traced = self._untraced.rate, self._traced.rate
        share = min(max(self._drawn.value, 0.05), 20.0)
        if self.rule.mode == Mode.STRICT or (self.rule.mode == Mode.BOOST and self._thins):
            return Load(0, share * (untraced + traced))
        if self.rule.mode == Mode.BOOST:
            forced = min(self._forced.value, 1.0)
            return Load(forced * traced, share * (untraced + (1 - forced) * traced))
        if self._thins:
            return Load(0, share * (untraced + min(self._parents.value, 1.0) * traced))
        return Load(self._kept.rate, share * untraced)

    def _learn(self, window: Window) -> None:
        if window.by_rate is None or window.traced_by_rate is None:
            return
        kept, expected = window.untraced_kept, window.by_rate
        if self.rule.mode == Mode.STRICT or (self.rule.mode == Mode.BOOST and self._thins):
            kept, expected = kept + window.traced_kept, expected + window.traced_by_rate
        elif self._thins:
            self._parents.add(window.traced_kept, 0, window.traced_by_rate)
        elif window.traced_by_rate <= _NEARLY_ALL * window.traced:
            self._forced.add(window.traced_kept, window.traced_by_rate, window.traced - window.traced_by_rate)
        self._drawn.add(kept, 0, expected)

    def _wanted(self, seconds: float) -> float:
        target, load = self.rule.target or 0.0, self.load
        if self.share is not None:
            target = min(self.share, target)
        self._peak = max(self._peak * 0.5 ** (seconds / _PEAK_S), load.drawn)
        if load.drawn:
            rate = min((target - load.forced) / load.drawn, _FLOOD * target / self._peak) * 100
        elif load.forced > target:
            rate = 0.0
        else:
            rate = self._steered * 2 ** (seconds / _SILENCE_S)
        return min(max(rate, self.rule.floor), 100.0)
