"""Applications with a sampler, each a process of its own: a sampler lives as long as its process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import defaultdict
from itertools import groupby
from pathlib import Path
from typing import Any

from tests.agent_process import PATIENCE_S, AgentProcess, eventually, import_path

__all__ = ["REPORTS", "Application", "hook_counts", "run"]

_HERE = Path(__file__).parent
_PRELUDE = "import os, sys, threading, time\nfrom spandial import Sampler\nfrom reporting import *\n"

# The usual application: one sampler, reporting its rate until it is told to end.
REPORTS = "serve(Sampler(os.environ.get('DEFAULT')))"


def _environment(run_dir: Path, environ: dict[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "SPANDIAL_"))}
    # Python 3.12 and later warn of every fork beside a thread.
    quiet = {"PYTHONWARNINGS": "ignore:This process:DeprecationWarning"}
    return {**kept, **quiet, "SPANDIAL_RUN_DIR": str(run_dir), **import_path(_HERE), **environ}


def run(run_dir: Path, script: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a script with a sampler's usual imports to its end."""
    return subprocess.run(
        [sys.executable, "-c", _PRELUDE + script],
        env=_environment(run_dir, environ),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


def hook_counts(agent: AgentProcess, pid: int) -> dict[str, int]:
    """What the hook counted of HTTP requests, without the zeros."""
    target = next(target for target in agent.get("/stats")["targets"] if target["pid"] == pid)
    return {name: count for name, count in target["kinds"]["http"]["hook"].items() if count}


class Application:
    """A running application; its reports are read as they come, those of its children too.

    Args:
        user: the numeric user it runs as; this one without it.
    """

    def __init__(self, run_dir: Path, script: str = REPORTS, user: int | None = None, **environ: str) -> None:
        self._reports: dict[int, list[dict[str, Any]]] = defaultdict(list)
        self._errors = b""
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PRELUDE + script],
            env=_environment(run_dir, environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            user=user,
            extra_groups=None if user is None else [],
        )
        self._readers = [threading.Thread(target=self._read_reports), threading.Thread(target=self._read_errors)]
        for reader in self._readers:
            reader.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def errors(self) -> list[str]:
        """The lines of standard error so far."""
        return self._errors.decode().splitlines()

    def pids(self, count: int) -> list[int]:
        """Its process and its children that report, once there are so many; its own first."""
        eventually(lambda: len(self._reports) >= count, f"{count} processes report")
        return sorted(self._reports, key=lambda pid: (pid != self.pid, pid))

    def reports(self, pid: int | None = None) -> list[dict[str, Any]]:
        """All reports so far."""
        return list(self._reports.get(pid or self.pid, ()))

    def wait(self, count: int, pid: int | None = None) -> dict[str, Any]:
        """Wait for the report of this number, the first being 1."""

        def come() -> dict[str, Any] | None:
            reports = self.reports(pid)
            return reports[count - 1] if len(reports) >= count else None

        try:
            return dict(eventually(come, f"report {count} of {pid or self.pid}"))
        except AssertionError as error:
            raise AssertionError("\n".join([str(error), *self.errors])) from None

    def rates(self, pid: int | None = None) -> list[int]:
        """The rates that the reports have shown, one after the other."""
        return [rate for rate, _ in groupby(int(report["rate"]) for report in self.reports(pid))]

    def send(self, line: str) -> None:
        """Write to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def report(self, pid: int | None = None) -> dict[str, Any]:
        """A report that was begun after this call."""
        return self.wait(len(self.reports(pid)) + 2, pid)  # one may be under way already

    def rate(self, pid: int | None = None) -> int:
        """The rate that the decisions show from now on."""
        return int(self.report(pid)["rate"])

    def obeys(self, rate: int, pid: int | None = None) -> bool:
        """Whether the decisions show this rate, now or before long."""
        return bool(eventually(lambda: self.rate(pid) == rate, f"the application obeys {rate}"))

    def end(self) -> int:
        """Close its standard input, and wait; the exit code."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        code = self.process.wait(30)
        for reader in self._readers:
            reader.join(30)
        return code

    def __enter__(self) -> Application:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()
        for reader in self._readers:
            reader.join(30)

    def _read_reports(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                report = json.loads(line)
                self._reports[report["pid"]].append(report)

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stream:
            while chunk := stream.read1():
                self._errors += chunk
