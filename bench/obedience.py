"""An honest application with the hook, which decides a thousand times a second and says when it was not as set.

The rate that is set for it is RATES, in mode boost, and its own default is 0 %. So a caller's dropped trace whose
randomness is a little above the threshold must be kept, and one a little below it dropped: another rate, or the
fallback, shows at once. `python -m bench.obedience RUN_DIR` says "obeys" with the seconds from its registration's
begin, and answers each line with its counts.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from bench.checkout import ROOT
from spandial import Sampler

__all__ = ["RATES", "SERVICE", "Counts", "Honest"]

SERVICE = "honest"
RATES = (90.0, 90.5)  # percent; PUTs change between them, so that each of them changes something
_KEPT, _DROPPED = 12, 8  # percent of the randomness: kept from 88 % on, and from 92 %
_PAUSE_S = 0.001


class Counts(NamedTuple):
    """Since it obeyed first.

    Attributes:
        decisions: all.
        wrong: that were not as set.
    """

    decisions: int
    wrong: int


class Honest:
    """The application as a process of its own, of this process's user."""

    def __init__(self, run_dir: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.obedience", str(run_dir)],
            cwd=ROOT,
            env={name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "SPANDIAL_"))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        self._first = ""
        self._reader = threading.Thread(target=self._read_first, daemon=True)
        self._reader.start()

    def _read_first(self) -> None:
        assert self._process.stdout is not None
        self._first = self._process.stdout.readline()

    def obeyed_after(self, patience_s: float) -> float | None:
        """Seconds from the begin of its registration; None if it takes longer than that."""
        self._reader.join(patience_s)
        return float(self._first.split()[1]) if self._first else None

    def counts(self) -> Counts:
        """As of now. It must have obeyed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return Counts(*json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


class _Decisions:
    def __init__(self, run_dir: str) -> None:
        self._sampler = Sampler("0", service=SERVICE, run_dir=run_dir)
        self.decisions = self.wrong = 0

    def obeys(self) -> bool:
        return self._kept(_KEPT) and not self._kept(_DROPPED)

    def _kept(self, percent: int) -> bool:
        trace = (percent << 56) // 100
        dropped = NonRecordingSpan(SpanContext(trace, 1, True, TraceFlags(0)))
        context = set_span_in_context(dropped, Context())
        return self._sampler.should_sample(context, trace, "").decision.is_sampled()

    def decide(self) -> None:
        """For ever."""
        while True:
            self.wrong += not self.obeys()
            self.decisions += 1
            time.sleep(_PAUSE_S)


def _main(run_dir: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    began = time.monotonic()
    decisions = _Decisions(run_dir)
    while not decisions.obeys():
        time.sleep(_PAUSE_S)
    print("obeys", time.monotonic() - began, flush=True)
    threading.Thread(target=decisions.decide, daemon=True).start()
    for _ in sys.stdin:
        print(json.dumps([decisions.decisions, decisions.wrong]), flush=True)


if __name__ == "__main__":
    _main(sys.argv[1])
