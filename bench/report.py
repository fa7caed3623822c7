"""What the benchmarks print: spreads of interleaved runs, and each result beside its bar."""

from __future__ import annotations

import argparse
import math
import os
import platform
import shutil
import signal
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = [
    "AT_LEAST",
    "AT_MOST",
    "Bar",
    "Interval",
    "Spread",
    "console",
    "end_on_signals",
    "median_interval",
    "parser",
    "percentile",
    "ratios",
    "run",
    "spread",
    "table",
]

# Never narrower than the widest table: a long line may wrap, but no number is cut off.
console = Console(highlight=False, width=max(150, shutil.get_terminal_size().columns))

AT_MOST, AT_LEAST = "<=", ">="


class Spread(NamedTuple):
    """Median and quartiles."""

    low: float
    median: float
    high: float

    def text(self, digits: int = 3) -> str:
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}-{self.high:.{digits}f})"


def spread(values: Iterable[float]) -> Spread:
    found = list(values)
    if len(found) < 2:
        return Spread(found[0], found[0], found[0])
    return Spread(*statistics.quantiles(found, n=4, method="inclusive"))


def ratios(these: Sequence[float], those: Sequence[float]) -> Spread:
    """Spread of the pairs' ratios, run by run."""
    return spread(this / that for this, that in zip(these, those))


def percentile(values: Iterable[float], percent: float) -> float:
    """The smallest value that so many percent of the values do not exceed."""
    found = sorted(values)
    return found[max(0, math.ceil(len(found) * percent / 100) - 1)]


class Interval(NamedTuple):
    """A median, and the limits within which the true one lies with some confidence, usually 95 %."""

    low: float
    median: float
    high: float

    def text(self, digits: int = 3) -> str:
        return f"{self.median:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def median_interval(values: Iterable[float], confidence: float = 0.95) -> Interval:
    """By the sign test: between the k-th smallest value and the k-th largest, with the greatest k for which so few of
    fair coins fall on one side in fewer cases than the confidence leaves, 5 % usually. It supposes no distribution,
    only that the values do not depend on each other. Of too few values (five or fewer, for 95 %) nothing can be said:
    the limits are infinite.
    """
    found = sorted(values)
    count, below, chance, k = len(found), 0.0, 0.5 ** len(found), 0
    while k < count // 2 + 1:
        below += math.comb(count, k) * chance
        if 2 * below > 1 - confidence:
            break
        k += 1
    if k == 0:
        return Interval(-math.inf, statistics.median(found), math.inf)
    return Interval(found[k - 1], statistics.median(found), found[-k])


class Bar(NamedTuple):
    """What a number has to hold, by docs or design."""

    sense: str
    limit: float
    unit: str = ""

    def __str__(self) -> str:
        return f"{self.sense} {self.limit:g}{' ' + self.unit if self.unit else ''}"

    def verdict(self, value: float) -> Text:
        held = value <= self.limit if self.sense == AT_MOST else value >= self.limit
        return Text("held", "green") if held else Text("MISSED", "bold red")

    def judge(self, interval: Interval) -> Text:
        """Held or missed only where the whole interval is."""
        low, high = self.verdict(interval.low), self.verdict(interval.high)
        return low if low == high else Text("undecided", "yellow")


def table(title: str, *columns: str) -> Table:
    """An empty table; a column whose name ends in > is aligned to the right."""
    made = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        made.add_column(column.rstrip(">"), justify="right" if column.endswith(">") else "left", no_wrap=True)
    return made


def parser(description: str | None) -> argparse.ArgumentParser:
    """A command line with --quick; the script's docstring is its help."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="a short run: whether it works, not what it costs")
    return made


def run(name: str, measure: Callable[[], None]) -> None:
    """Print where this runs, then measure."""
    end_on_signals()
    load = os.getloadavg()[0]
    console.print(
        f"[bold]bench/{name}[/bold]: {_processor()}, {os.cpu_count()} cores, Linux {platform.release()}, "
        f"Python {platform.python_version()}"
    )
    if load > 0.5:
        console.print(f"[yellow]the load average is {load:.2f}: somebody is at work here, expect wide spreads[/yellow]")
    console.print()
    measure()


def end_on_signals() -> None:
    """Ctrl-C and SIGTERM raise SystemExit, once: nothing interrupts the taking down of what was started."""

    def end(number: int, _frame: object) -> None:
        for ignored in (signal.SIGINT, signal.SIGTERM):
            signal.signal(ignored, signal.SIG_IGN)
        sys.exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)


def _processor() -> str:
    with open("/proc/cpuinfo") as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return names[0] if names else platform.machine()
