"""What the parts of bench/compare are given: the two trees, how often, where, and where the results go."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.agent_process import AgentProcess

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

    def look_at(self, agents: Mapping[Side, AgentProcess]) -> None:
        """Raises RuntimeError if they do not have the same kernel side: then they do not do the same work."""
        sides = {}
        for side, agent in agents.items():
            health = agent.get("/healthz")
            sides[side] = f"table {health['table']}, capture {health['capture']}"
        if len(set(sides.values())) > 1:
            said = "; ".join(f"{side}: {what}" for side, what in sides.items())
            raise RuntimeError(f"the agents do not have the same kernel side ({said}); their logs say why")

    def stay_off_the_last_core(self) -> None:
        """This process, and what it starts without saying where."""
        os.sched_setaffinity(0, self.cores[:-1] or self.cores)
