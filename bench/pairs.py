"""A load in slices, by turns with capture off and on: off, on, off, on."""

from __future__ import annotations

import random
from collections.abc import Callable
from statistics import mean
from typing import NamedTuple

from bench import report
from bench.programs import run_times_kept
from bench.servers import Load
from bench.switch import Dial, Seen, Switch
from bench.workloads import Workload
from spandial.abi import EntryKind

__all__ = ["DIALS", "EXPORTED", "OFF", "Pairs", "Times"]

OFF, EXPORTED = "off", "100 %, exported"
DIALS = {
    "rate 0 %": Dial(0),
    "rate 1 %": Dial(1),
    "1 %, 100 rules by operation": Dial(1, operations=100),
    "rate 100 %": Dial(100),
    EXPORTED: Dial(100, exported=True),
}
_NOBODY = 1 << 23  # above the greatest possible pid (PID_MAX_LIMIT, 2^22)
_TIMED = 7  # slices with times, for each dial
_MULTIPLE = 16  # of which operations are: some generators divide them among their connections


class _Pair(NamedTuple):
    on: Load
    before: Load
    after: Load


class Times(NamedTuple):
    """What the programs took in a slice.

    Attributes:
        runs: for an operation, everybody's.
        mean_ns: of all runs.
        operation_ns: the time that all runs together took for an operation, beyond what they take where there is no
            target.
        own_ns: the mean of the target's own socket operations that moved data, at most: that time laid on them alone.
    """

    runs: float
    mean_ns: float
    operation_ns: float
    own_ns: float


class Pairs:
    """The slices of one workload.

    Attributes:
        operations: of each slice.
        dials: each under its name; of rules by operation only where there is a path.
        base: the slices with capture off. Each other lies between two of them.
        times: of the programs by dial, in slices apart.
        nobodys_ns: the mean of a run where there is no target.
        socket_operations: that moved data, of the target for an operation.
        sent, counted: requests of the target while capture was on, and how many the kernel counted.
        records, lost: that were handed over with `EXPORTED`, and events that were lost then.
    """

    def __init__(self, workload: Workload, switch: Switch) -> None:
        self.operations = 64 * _MULTIPLE
        self.base: list[Load] = []
        self.dials = {arm: dial for arm, dial in DIALS.items() if workload.kind != EntryKind.DB or not dial.operations}
        self.times: dict[str, list[Times]] = {arm: [] for arm in self.dials}
        self.nobodys_ns = self.socket_operations = 0.0
        self.sent = self.counted = self.records = self.lost = 0
        self._pairs: dict[str, list[_Pair]] = {arm: [] for arm in self.dials}
        self._workload, self._switch = workload, switch

    def run(self, rounds: int, seconds: float) -> None:
        """So many slices for each dial, of so many seconds; how many operations those are is found out before."""
        for _ in range(3):
            self.operations = max(1, int(self._slice().rate * seconds) // _MULTIPLE) * _MULTIPLE
        self.base.append(self._slice())
        for _ in range(rounds):
            for arm in random.sample([*self.dials], len(self.dials)):
                on, _ = self._captured(DIALS[arm])
                self.base.append(self._slice())
                self._pairs[arm].append(_Pair(on, *self.base[-2:]))
        self._take_times()

    def ratio(self, arm: str, performance: Callable[[Load], float]) -> report.Interval:
        """Each slice by the mean of the two beside it."""
        return report.median_interval(
            performance(on) / mean((performance(before), performance(after))) for on, before, after in self._pairs[arm]
        )

    def noise(self, performance: Callable[[Load], float]) -> report.Interval:
        """Each third slice with capture off by the mean of its neighbours among those: how far apart slices are that
        differ in nothing."""
        values = list(map(performance, self.base))
        return report.median_interval(
            this / mean((before, after)) for before, this, after in zip(values[::3], values[1::3], values[2::3])
        )

    def loads(self, arm: str) -> list[Load]:
        return self.base if arm == OFF else [pair.on for pair in self._pairs[arm]]

    def _slice(self) -> Load:
        self._workload.begin(self.operations)
        return self._workload.finish()

    def _captured(self, dial: Dial, *, counting: bool = False) -> tuple[Load, Seen]:
        self._switch.on(self._workload.begin(self.operations), dial, counting=counting)
        load = self._workload.finish()
        seen = self._switch.off()
        self.sent += self.operations + self._workload.beside
        self.counted += seen.requests[self._workload.kind]
        if dial.exported:
            self.records += seen.records
            self.lost += sum(seen.lost.values())
        return load, seen

    def _take_times(self) -> None:
        _, seen = self._captured(DIALS["rate 0 %"], counting=True)
        self.socket_operations = (seen.operations or 0) / self.operations
        with run_times_kept():
            nobodys = [self._unwatched() for _ in range(_TIMED)]
            self.nobodys_ns = sum(seen.ns for seen in nobodys) / sum(seen.runs for seen in nobodys)
            for _ in range(_TIMED):
                for arm, dial in self.dials.items():
                    self.times[arm].append(self._times(self._captured(dial)[1]))

    def _unwatched(self) -> Seen:
        self._workload.begin(self.operations)
        self._switch.on(_NOBODY, Dial(0))
        self._workload.finish()
        return self._switch.off()

    def _times(self, seen: Seen) -> Times:
        beyond = max(0.0, seen.ns - seen.runs * self.nobodys_ns) / self.operations
        own = self.nobodys_ns + beyond / self.socket_operations if self.socket_operations else float("nan")
        return Times(seen.runs / self.operations, seen.ns / seen.runs, beyond, own)
