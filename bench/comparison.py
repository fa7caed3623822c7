"""Two trees' numbers side by side: pairs, their ratios, and what they allow to say. Pure.

Everything that is measured is a cost: less is better.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from bench import report

__all__ = [
    "CANNOT_TELL",
    "FALSE_VERDICTS",
    "NEW",
    "OLD",
    "Comparison",
    "Order",
    "Quad",
    "Quantity",
    "Side",
    "Verdict",
    "four",
    "judge",
    "orders",
]

Side = Literal["old", "new"]
OLD: Side = "old"
NEW: Side = "new"
Order = tuple[Side, Side, Side, Side]

FALSE_VERDICTS = 0.05  # chance that a whole table has one, of trees that do not differ
CANNOT_TELL = "cannot tell"
_WORDS = {"MB": ("smaller", "larger")}
_TIME = ("faster", "slower")


class Quad(NamedTuple):
    """Two pairs: one quantity of both trees, each twice, by turns and close together.

    Attributes:
        old: the earlier one first only where the old began, which is in half of the quads: so what a first measurement
            has of its own falls out of the noise.
        new: likewise.
    """

    old: tuple[float, float]
    new: tuple[float, float]

    @property
    def ratio(self) -> float:
        """New by old. What changes steadily meanwhile falls out."""
        return sum(self.new) / sum(self.old)

    @property
    def noise(self) -> float:
        """The old by itself: what the ratio of two equal trees could be."""
        return self.old[0] / self.old[1]


class Verdict(NamedTuple):
    """What can be said, in words.

    Attributes:
        text: to be read.
        worse: the new tree costs more, beyond the noise.
        better: it costs less.
    """

    text: str
    worse: bool = False
    better: bool = False


class Quantity:
    """One line of the table.

    Attributes:
        part, name, unit: what it is.
        turns: its quads; those of one turn are of the same processes, those of different turns are not.
    """

    def __init__(self, part: str, name: str, unit: str) -> None:
        self.part, self.name, self.unit = part, name, unit
        self.turns: list[list[Quad]] = []

    @property
    def pairs(self) -> int:
        return 2 * sum(map(len, self.turns))

    def median(self, side: Side) -> float:
        """Of all that was measured of one tree."""
        quads = [quad for turn in self.turns for quad in turn]
        return statistics.median(value for quad in quads for value in (quad.old if side == OLD else quad.new))

    def ratio(self, confidence: float) -> report.Interval:
        """Of new by old. The values are the turns, each by the median of its quads: two processes differ a little even
        if they run the same code, so that the quads of one turn depend on each other."""
        return report.median_interval(
            (statistics.median(quad.ratio for quad in turn) for turn in self.turns), confidence
        )

    def noise(self, confidence: float) -> report.Interval:
        """The same of the old by itself."""
        return report.median_interval(
            (statistics.median(quad.noise for quad in turn) for turn in self.turns), confidence
        )

    def verdict(self, confidence: float) -> Verdict:
        return judge(self.ratio(confidence), self.noise(confidence), self.unit)


class Comparison:
    """All that has been measured.

    Attributes:
        quantities: in the order in which they came.
        notes: sentences to be read beside the table.
        missing: sentences on what could not be measured, and why.
    """

    def __init__(self) -> None:
        self.quantities: list[Quantity] = []
        self.notes: list[str] = []
        self.missing: list[str] = []

    @property
    def confidence(self) -> float:
        """Of each line, so that all of them together hold in 95 % of the cases (Bonferroni)."""
        return 1 - FALSE_VERDICTS / max(1, len(self.quantities))

    def add(self, part: str, unit: str, turn: Mapping[str, list[Quad]]) -> None:
        """One more turn of some quantities, by name."""
        for name, quads in turn.items():
            self._quantity(part, name, unit).turns.append(quads)

    def note(self, sentence: str) -> None:
        """Once is enough."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def verdicts(self) -> list[Verdict]:
        return [quantity.verdict(self.confidence) for quantity in self.quantities]

    def exit_code(self) -> int:
        """1: something is worse; 2: nothing is, but something could not be measured; else 0."""
        if any(verdict.worse for verdict in self.verdicts()):
            return 1
        return 2 if self.missing else 0

    def raw(self) -> dict[str, object]:
        """Everything, for JSON."""
        quantities = [
            {"part": each.part, "name": each.name, "unit": each.unit, "turns": _plain(each.turns)}
            for each in self.quantities
        ]
        return {
            "confidence": self.confidence,
            "quantities": quantities,
            "notes": self.notes,
            "missing": self.missing,
        }

    def _quantity(self, part: str, name: str, unit: str) -> Quantity:
        for quantity in self.quantities:
            if (quantity.part, quantity.name) == (part, name):
                return quantity
        self.quantities.append(Quantity(part, name, unit))
        return self.quantities[-1]


def judge(ratio: report.Interval, noise: report.Interval, unit: str) -> Verdict:
    """Whether new and old differ. They do if the whole interval says so, and if it is beyond the noise: the old is like
    itself, and the ratio is none that the old shows to itself."""
    if ratio.low == -float("inf"):
        return Verdict(f"{CANNOT_TELL}: too few turns")
    if ratio.low <= 1 <= ratio.high:
        return Verdict(CANNOT_TELL)
    if not noise.low <= 1 <= noise.high:
        return Verdict(f"{CANNOT_TELL}: the old is not like itself")
    if noise.low <= ratio.median <= noise.high:
        return Verdict(f"{CANNOT_TELL}: within the noise")
    better, worse = _WORDS.get(unit, _TIME)
    return Verdict(worse, worse=True) if ratio.median > 1 else Verdict(better, better=True)


def orders(count: int) -> list[Order]:
    """Old, new, new, old or the other way round, as often as can be and in random order."""
    made: list[Order] = [(OLD, NEW, NEW, OLD), (NEW, OLD, OLD, NEW)]
    drawn = made * (count // 2) + random.sample(made, count % 2)
    random.shuffle(drawn)
    return drawn


def four(order: Order, measure: Callable[[Side, int], Mapping[str, float]]) -> dict[str, Quad]:
    """Measure four times in this order: `measure(side, 0 or 1)` tells some quantities of a tree for the first or the
    second time. Raises ValueError where something cost nothing at all, which no ratio can be made of."""
    found: dict[Side, list[Mapping[str, float]]] = {OLD: [], NEW: []}
    for side in order:
        found[side].append(measure(side, len(found[side])))
    for name, value in ((name, value) for each in found.values() for one in each for name, value in one.items()):
        if not value > 0:
            raise ValueError(f"{name} was measured as {value}")
    (this, that), (third, fourth) = (found[side][:: 1 if order[0] == OLD else -1] for side in (OLD, NEW))
    return {name: Quad((this[name], that[name]), (third[name], fourth[name])) for name in this}


def _plain(turns: list[list[Quad]]) -> list[list[dict[str, tuple[float, float]]]]:
    return [[quad._asdict() for quad in turn] for turn in turns]
