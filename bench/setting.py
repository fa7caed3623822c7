"""What the parts of bench/compare are given: the two trees, how often, where, and where the results go."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.comparison import Comparison, Order, Side, orders
from bench.trees import Tree

__all__ = ["Setting"]


@dataclass(frozen=True)
class Setting:
    """One run.

    Attributes:
        trees: by side.
        folder: for everything's files.
        cores: the last is the one of what is measured; all else, agents too, is on the others.
        turns: of each quantity; by part, or of all.
        quick: as little as shows that it works.
        path: of capture.
        comparison: takes the results.
    """

    trees: dict[Side, Tree]
    folder: Path
    cores: list[int]
    turns: int | None
    quick: bool
    path: str
    comparison: Comparison

    def rounds(self, part: str, usual: int) -> Iterator[Order]:
        """The order of each turn of a part; says how far it is."""
        count = 1 if self.quick else self.turns or usual
        for number, order in enumerate(orders(count), 1):
            if sys.stderr.isatty() or number == 1:
                end = "\r" if sys.stderr.isatty() and number < count else "\n"
                print(f"{part}: turn {number} of {count} ", end=end, file=sys.stderr, flush=True)
            yield order

    @property
    def settings(self) -> dict[Side, dict[str, str]]:
        """Of the agents: each tree compiles its programs once."""
        return {side: {"SPANDIAL_COMPILED_DIR": str(self.folder / f"compiled-{side}")} for side in self.trees}

    def stay_off_the_last_core(self) -> None:
        """This process, and what it starts without saying where."""
        os.sched_setaffinity(0, self.cores[:-1] or self.cores)
