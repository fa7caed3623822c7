"""Steering: rates that follow what is counted. Targets of rules, the node's budget, tenants' circuits."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import NamedTuple

import structlog

from spandial.abi import DEFAULT_ROW, EntryKind
from spandial.labels import Labels
from spandial_agent.capture.capture import Capture
from spandial_agent.steering.arrivals import Arrivals
from spandial_agent.steering.circuits import Circuits
from spandial_agent.steering.loads import Run, budget_factors, load_at, runs_of, window_of
from spandial_agent.steering.sharing import Asked, shares
from spandial_agent.steering.tallies import Tallies
from spandial_agent.steering.throughput import Load, Throughput, Window
from spandial_agent.targets.group import Group
from spandial_agent.targets.limit import Limit
from spandial_agent.targets.target import Target
from spandial_agent.targets.targets import Targets
from spandial_api.breaker import Circuit, Thresholds
from spandial_api.budgets import Limits
from spandial_api.node_states import BudgetUse, TenantUse
from spandial_api.rules import Rule, RuleBook
from spandial_api.selectors import Selector

__all__ = ["Steering"]

_INTERVAL_S = 0.5
_SLOWEST_S = 2.0
_WORK = 0.03  # of the time
_GAP_S = 5.0  # between two looks: what held meanwhile is not known
_SMOOTHED = 4  # windows of a target's own load
_NEAR = 0.5  # of the budget: from here on it is known what each target asks for

_KINDS = tuple(EntryKind)
_log = structlog.get_logger("spandial.steering")
_Key = tuple[Selector, str, int]  # a rule's selector, a service, and the user whose processes they are


class _Force(NamedTuple):
    """What a group had in force at a look: the same objects as long as nobody changed it."""

    rules: tuple[Rule | None, ...]
    percents: tuple[float, ...]


class _Held(NamedTuple):
    """What held in the last window.

    Attributes:
        runs: each group's rates at its end.
        changed: the groups whose rates somebody else changed in it.
    """

    runs: dict[Group, list[Run]]
    changed: set[Group]
    seconds: float

    def loads(self, group: Group, tally: int, limit: Limit | None) -> list[Load]:
        """Of each run of a group, from what was counted under a limit."""
        by_operation = bool(group.operations)
        windows = ((run, window_of(run, tally, self.seconds, limit)) for run in self.runs[group])
        return [load_at(run, window, limit, by_operation=by_operation) for run, window in windows]


class Steering:
    """Looks at the counts twice a second, as long as there is something to steer; less often where that would take more
    than three percent of the time.

    Args:
        publish: has the hooks of these processes publish their counts, and waits for them a moment.
        clock: seconds.

    Attributes:
        paused: nothing is counted, and nothing can be said of rates.
    """

    def __init__(
        self,
        targets: Targets,
        capture: Capture | None,
        publish: Callable[[Collection[Target]], Awaitable[None]],
        thresholds: Thresholds | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._targets = targets
        self._publish = publish
        self._clock = clock
        self._tallies = Tallies(capture)
        self._limits = Limits()
        self._book: RuleBook | None = None
        self._targeted = False  # whether it has rules with a target
        self._rules: dict[_Key, Throughput] = {}
        self._last: dict[str, list[tuple[Group, int]]] = {}  # what was counted in the last window, by service
        self._last_s = 0.0
        self._looked: float | None = None
        self._trouble = ""
        self._force: dict[Group, _Force] = {}
        self._asked: dict[int, deque[Asked]] = {}
        self._factors: dict[int, float] = {}
        self._demand = Arrivals()
        self._circuits = Circuits(thresholds or Thresholds())
        self.paused = False
        targets.rate_of = self.rate_of

    def rate_of(self, rule: Rule, labels: Labels, uid: int) -> float:
        """The percentage that a rule has for a user's processes of a service. Any process may give itself any name:
        what it counts moves the rates of its own user's processes and no others."""
        if rule.rate is not None:
            return rule.rate
        key = rule.selector, labels.service, uid
        steered = self._rules.get(key)
        if steered is None:
            steered = self._rules[key] = Throughput(rule)
            if window := self._measured(rule, labels.service, uid):
                steered.add(window)
        elif steered.rule is not rule:
            steered.put(rule)
        return steered.rate

    def limit(self, limits: Limits) -> None:
        """Hold the node to these: what they no longer limit is as its rules say at once, the rest at the next look."""
        self._limits = limits
        self._circuits.limit(limits)
        if limits.budget is None:
            self._asked, self._factors = {}, {}
        if not self._limiting:
            self._demand = Arrivals()
            self._circuits.forget_demands()
        self._write_limits()

    @property
    def circuits(self) -> dict[str, Circuit]:
        return self._circuits.by_tenant

    def restore(self, circuits: Mapping[str, Circuit]) -> None:
        """Go on with these."""
        self._circuits.restore(circuits)

    @property
    def budget_use(self) -> BudgetUse:
        limited = sum(limit.factor < 1 for limit in self._targets.limits.values())
        return BudgetUse(demand=self._demand.rate if self._limiting else None, limited=limited)

    @property
    def tenant_uses(self) -> list[TenantUse]:
        return self._circuits.uses(self._limits)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            begun = time.thread_time()
            if self.paused:
                self._looked = None  # what steers stays as it is, and the next look only remembers
            elif self._needed:
                await self._publish([t for t in self._targets if t.pages and (self._limiting or _is_steered(t.group))])
                self._try_to_look()
            elif self._looked is not None:
                self._rest()
            worked = time.thread_time() - begun
            await asyncio.sleep(min(max(_INTERVAL_S, worked / _WORK), _SLOWEST_S))

    def _try_to_look(self) -> None:
        try:
            self.look()
            self._trouble = ""
        except OSError as error:  # the rates stay as they are; the next look only remembers
            if self._trouble != str(error):
                _log.warning("the kernel's counts cannot be read, and no rate is steered", error=str(error))
            self._trouble, self._looked = str(error), None

    def look(self) -> None:
        """Steer by what has come since the last look."""
        now = self._clock()
        seconds = now - self._looked if self._looked is not None else 0.0
        first = not 0 < seconds <= _GAP_S
        self._looked = now
        found = self._tallies.look([t for t in self._targets if t.row.number != DEFAULT_ROW], first=first)
        groups = {target.group for target in self._targets}
        self._forget(groups)
        if not first:
            held = _Held(
                {group: runs_of(group.rules, group.percents, group.default) for group in groups},
                {group for group in groups if self._changed(group)},
                seconds,
            )
            limits = self._targets.limits
            summed: dict[tuple[Group, Limit | None], int] = {}
            for target, tally in found:
                key = target.group, limits.get(target.pid)
                summed[key] = summed.get(key, 0) + tally
            self._steer(held, summed)
            if self._limiting:
                self._hold(held, summed, found)
        self._force = {group: _Force(group.rules, group.percents) for group in groups}

    @property
    def _limiting(self) -> bool:
        limits = self._limits
        return limits.budget is not None or limits.quota is not None or bool(limits.quotas)

    @property
    def _needed(self) -> bool:
        book = self._targets.book
        if book is not self._book:
            self._book, self._targeted = book, any(rule.rate is None for rule in book.rules.values())
        return self._limiting or self._targeted

    def _rest(self) -> None:
        self._looked = None
        self._forget(())
        self._last.clear()

    def _forget(self, groups: Iterable[Group]) -> None:
        """Rules that steer nobody any more."""
        groups = list(groups)
        keys = {
            (rule.selector, g.labels.service, g.uid) for g in groups for rule in g.rules if rule and rule.rate is None
        }
        self._rules = {key: steered for key, steered in self._rules.items() if key in keys}

    def _changed(self, group: Group) -> bool:
        """Whether its rates were changed since the last look, by somebody else."""
        known = self._force.get(group)
        return known is None or known.rules is not group.rules or known.percents is not group.percents

    def _steer(self, held: _Held, summed: Mapping[tuple[Group, Limit | None], int]) -> None:
        """Move the rates of rules with a target."""
        self._last, self._last_s = {}, held.seconds
        windows: dict[_Key, list[Window]] = {}
        for (group, limit), tally in summed.items():
            service = group.labels.service
            self._last.setdefault(service, []).append((group, tally))
            for run in held.runs[group]:
                if run.rule is not None and run.rule.rate is None:
                    window = window_of(run, tally, held.seconds, limit, changed=group in held.changed)
                    windows.setdefault((run.rule.selector, service, group.uid), []).append(window)
        moved, nothing = set(), Window(held.seconds)
        for key, steered in self._rules.items():
            before = steered.rate
            steered.add(Window.together(windows[key]) if key in windows else nothing)
            if steered.rate != before:
                moved.add(key[1])
        self._share_targets()
        if moved:
            self._targets.refresh(moved)

    def _share_targets(self) -> None:
        """Where a service's processes are of several users, these share a rule's target: each has what he asks for, up
        to a level that is the same for all."""
        by_rule: dict[tuple[Selector, str], list[Throughput]] = {}
        for (selector, service, _), steered in self._rules.items():
            by_rule.setdefault((selector, service), []).append(steered)
        for parts in by_rule.values():
            if len(parts) == 1:
                parts[0].share = None
                continue
            target = parts[0].rule.target or 0.0
            loads = [part.load for part in parts]
            given = shares(target, [Asked(load.kept(100), load.forced) for load in loads])
            left = max(target - sum(given), 0.0)
            for part, share in zip(parts, given):
                part.share = share + left

    def _measured(self, rule: Rule, service: str, uid: int) -> Window | None:
        """What the last look found of the entries that a new rule is for."""
        windows = [
            window_of(
                Run(rule, 0, tuple(kind for kind in _KINDS if rule.selector.matches_kind(kind))),
                tally,
                self._last_s,
                None,
                changed=True,
            )
            for group, tally in self._last.get(service, ())
            if group.uid == uid and rule.selector.matches_labels(group.labels)
        ]
        return Window.together(windows) if windows else None

    def _hold(
        self, held: _Held, summed: Mapping[tuple[Group, Limit | None], int], found: list[tuple[Target, int]]
    ) -> None:
        """Step the circuits, share the budget out, and write what follows."""
        percents = {
            group: [run.percent for run in runs_of(group.rules, group.percents, group.default)] for group in held.runs
        }
        tenants = {(group.labels.tenant, group.uid): 0.0 for group in held.runs}
        for (group, limit), tally in summed.items():
            loads = held.loads(group, tally, limit)
            tenants[group.labels.tenant, group.uid] += sum(
                load.kept(rate) for load, rate in zip(loads, percents[group])
            )
        self._circuits.step(tenants, self._limits, held.seconds)

        def asked(group: Group, tally: int, limit: Limit | None) -> Asked:
            """What the rules ask for under the circuits as they are now."""
            loads, most = held.loads(group, tally, limit), self._circuits.most(group.labels.tenant, group.uid)
            wanted = sum(load.kept(min(rate, most)) for load, rate in zip(loads, percents[group]))
            return Asked(wanted, min(sum(load.forced for load in loads), wanted))

        demand = sum(asked(group, tally, limit).wanted for (group, limit), tally in summed.items())
        self._demand.add(demand * held.seconds, held.seconds)
        budget = self._limits.budget
        if budget is None or max(self._demand.rate, demand) < _NEAR * budget:
            self._asked, self._factors = {}, {}
        else:
            limits = self._targets.limits
            by_pid = {t.pid: asked(t.group, tally, limits.get(t.pid)) for t, tally in found}
            self._factors = self._share_budget(budget, self._smoothed(by_pid, held.changed))
        self._write_limits()

    def _write_limits(self) -> None:
        limited = {}
        if self._factors or self._circuits:
            for target in self._targets:
                factor = self._factors.get(target.pid, 1.0)
                most = self._circuits.most(target.labels.tenant, target.uid)
                if factor < 1 or most < 100:
                    limited[target.pid] = Limit(factor, most)
        self._targets.set_limits(limited)

    def _share_budget(self, budget: float, asked: Mapping[int, Asked]) -> dict[int, float]:
        """Users share the budget, and the targets of each share what he has of it."""
        by_uid: dict[int, dict[int, Asked]] = {}
        for pid, one in asked.items():
            if (target := self._targets.get(pid)) is not None:
                by_uid.setdefault(target.uid, {})[pid] = one
        together = [
            Asked(sum(one.wanted for one in ones.values()), sum(one.least for one in ones.values()))
            for ones in by_uid.values()
        ]
        factors: dict[int, float] = {}
        for ones, share in zip(by_uid.values(), shares(budget, together)):
            factors |= budget_factors(share, ones, self._factors)
        return factors

    def _smoothed(self, asked: Mapping[int, Asked], changed: Collection[Group]) -> dict[int, Asked]:
        """What each target asked for in the last few windows, on average."""
        smoothed: dict[int, Asked] = {}
        known: dict[int, deque[Asked]] = {}
        for target in self._targets:
            one, windows = asked.get(target.pid), self._asked.get(target.pid)
            if one is None and windows is None:
                continue
            if windows is None or target.group in changed:
                windows = deque(maxlen=_SMOOTHED)
            windows.append(one or Asked(0.0))
            wanted = sum(window.wanted for window in windows) / len(windows)
            if wanted:
                known[target.pid] = windows
                smoothed[target.pid] = Asked(wanted, sum(window.least for window in windows) / len(windows))
        self._asked = known
        return smoothed


def _is_steered(group: Group) -> bool:
    return any(rule is not None and rule.rate is None for rule in group.rules)
