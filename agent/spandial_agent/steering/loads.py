"""How much a target's entries load it, and by what a budget lowers its rates. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from spandial.abi import EntryKind, Mode, word_rate
from spandial_agent.capture.tally import by_kind
from spandial_agent.steering.sharing import Asked, shares
from spandial_agent.steering.throughput import Load, Window, load_of
from spandial_agent.targets.limit import Limit
from spandial_api.rules import Rule

__all__ = ["Run", "budget_factors", "load_at", "runs_of", "window_of"]

_DEAD_BAND = 0.03
_KINDS = tuple(EntryKind)


class Run(NamedTuple):
    """Kinds of entry that have the same rate.

    Attributes:
        percent: their own rate, without a limit.
    """

    rule: Rule | None
    percent: float
    kinds: tuple[EntryKind, ...]

    @property
    def mode(self) -> Mode:
        return Mode.FOLLOW if self.rule is None else self.rule.mode

    @property
    def thins(self) -> bool:
        return self.rule is not None and self.rule.selector.protocol is not None

    def rate(self, limit: Limit | None) -> float:
        """The percentage in force."""
        if limit is None:
            return self.percent
        return limit.rate(self.percent, 0.0 if self.rule is None else self.rule.floor)


def runs_of(rules: Sequence[Rule | None], percents: Sequence[float], default: int) -> list[Run]:
    """A target's rates, each with its kinds.

    Args:
        rules, percents: by kind of entry.
        default: the rate word where there is no rule.
    """
    runs: dict[int, Run] = {}
    first = rules[0]
    if first is not None and all(rule is first for rule in rules):
        return [Run(first, percents[0], _KINDS)]
    for kind, rule, percent in zip(_KINDS, rules, percents):
        if rule is None:
            percent = word_rate(default) or 0.0
        run = runs.get(id(rule))
        runs[id(rule)] = Run(rule, percent, (kind,)) if run is None else run._replace(kinds=(*run.kinds, kind))
    return list(runs.values())


def window_of(run: Run, tally: int, seconds: float, limit: Limit | None, *, changed: bool = False) -> Window:
    """What was counted of a run's entries in a time.

    Args:
        limit: what held in it.
        changed: the rate was changed in it.
    """
    counts = by_kind(tally)
    if len(run.kinds) == len(EntryKind):
        seen, kept, traced, traced_kept = map(sum, counts)
    else:
        seen, kept, traced, traced_kept = (sum(column[kind] for kind in run.kinds) for column in counts)
    untraced, rate = seen - traced, run.rate(limit) / 100
    return Window(
        seconds,
        untraced,
        kept - traced_kept,
        traced,
        traced_kept,
        None if changed else rate * untraced,
        None if changed else rate * traced,
    )


def load_at(run: Run, window: Window, limit: Limit | None, *, by_operation: bool = False) -> Load:
    """How the entries of a run's window divide, each a second.

    Args:
        by_operation: some operations have rates of their own: then what was really kept tells, as if it had been drawn
            at the run's rate.
    """
    if by_operation and (rate := run.rate(limit) / 100):
        forced = window.traced_kept if run.mode == Mode.FOLLOW and not run.thins else 0.0
        drawn = (window.untraced_kept + window.traced_kept - forced) / rate
        return Load(forced / window.seconds, drawn / window.seconds)
    load = load_of(run.mode, run.thins, window.untraced, window.traced, window.traced_kept, run.rate(limit) / 100)
    return Load(load.forced / window.seconds, load.drawn / window.seconds)


def budget_factors(budget: float, asked: Mapping[int, Asked], before: Mapping[int, float]) -> dict[int, float]:
    """By what the rates of those are to be multiplied who would get more than their share.

    Args:
        asked: what each asks for, by pid.
        before: the factors until now: one that hardly changes stays.
    """
    factors: dict[int, float] = {}
    for (pid, (wanted, least)), share in zip(asked.items(), shares(budget, list(asked.values()))):
        if share >= wanted:
            continue
        factor = max(share - least, 0.0) / (wanted - least)
        known = before.get(pid, 0.0)
        factors[pid] = known if abs(factor - known) <= _DEAD_BAND * known else factor
    return factors
