"""The agent as a process of its own, as the tests and benchmarks start it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

__all__ = ["COMPILED", "PATIENCE_S", "AgentProcess", "compiled_of", "eventually", "import_path"]


def compiled_of(tests: Path) -> Path:
    """For all agents of the tests and benchmarks of a checkout, which has this folder; also of the next run."""
    checkout = zlib.crc32(os.fsencode(tests.resolve()))
    return Path(tempfile.gettempdir()) / f"spandial-compiled-{os.geteuid()}-{checkout:08x}"


COMPILED = compiled_of(Path(__file__).parent)


def import_path(*folders: Path) -> dict[str, str]:
    """Where a process that a test starts imports from: these folders first, then where the tests do."""
    return {"PYTHONPATH": os.pathsep.join([*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])])}


# How long whatever must come may take: on a host that is busy, everything takes long.
PATIENCE_S = 120.0


def eventually(condition: Callable[[], Any], what: str) -> Any:
    """What the condition returns once it is true. Raises AssertionError with what was waited for."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            if value := condition():
                return value
        except (httpx.TransportError, KeyError, IndexError, OSError):
            pass
        if time.monotonic() > end:
            raise AssertionError(f"not within {PATIENCE_S:g} s: {what}")
        time.sleep(0.02)


class AgentProcess:
    """`python -m spandial_agent agent` with folders of its own and a free port.

    Args:
        folder: holds `run`, `state` and `log`; survives a restart.
        python: the interpreter.
        cwd: where it is started.
        settings: SPANDIAL_* variables, or others.
    """

    def __init__(self, folder: Path, *, python: str = sys.executable, cwd: Path | None = None, **settings: str) -> None:
        self._python, self._cwd = python, cwd
        self.run_dir = folder / "run"
        self.state_dir = folder / "state"
        self.log = folder / "log"
        folder.mkdir(parents=True, exist_ok=True)
        os.chmod(folder, 0o755)
        self.settings = {
            "SPANDIAL_RUN_DIR": str(self.run_dir),
            "SPANDIAL_STATE_DIR": str(self.state_dir),
            "SPANDIAL_COMPILED_DIR": str(COMPILED),
            "SPANDIAL_PORT": "0",
            "SPANDIAL_WRITES_PER_SECOND": "0",
            "SPANDIAL_MAX_RATE_WITHOUT_TTL": "100",
            **settings,
        }
        self.process: subprocess.Popen[bytes] | None = None
        self.http = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(self.run_dir / "api.sock")),
            base_url="http://spandial",
            timeout=PATIENCE_S,
        )

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def url(self) -> str:
        """Where it serves over TCP, as its log says."""
        line = next(line for line in reversed(self.log.read_text().splitlines()) if "url=" in line)
        return line.partition("url=")[2].split()[0]

    def start(self) -> None:
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [self._python, "-m", "spandial_agent", "agent"],
                cwd=self._cwd,
                env={**os.environ, **self.settings},
                stdout=log,
                stderr=log,
            )
        try:
            eventually(self._serves, "the agent serves")
        except AssertionError as error:
            raise AssertionError(f"{error}:\n{self.log.read_text()}") from None

    def _serves(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError("the agent ended")
        return self.http.get("/healthz").is_success

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL: nothing is tidied up."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"the agent did not end:\n{self.log.read_text()}") from None

    def set(self, rate: str | float, **selector: str) -> dict[str, Any]:
        """PUT /sampling over the Unix socket."""
        answer = self.http.put("/sampling", params={"rate": str(rate), **selector})
        assert answer.is_success, answer.text
        return dict(answer.json())

    def remove(self, **selector: str) -> None:
        """DELETE /sampling over the Unix socket."""
        answer = self.http.delete("/sampling", params=selector)
        assert answer.is_success, answer.text

    def get(self, path: str) -> Any:
        answer = self.http.get(path)
        assert answer.is_success, answer.text
        return answer.json()

    def begin_anew(self) -> None:
        """For the next of the tests that share it: without rules, and without the processes of those before."""
        fields = ("service", "env", "version", "tenant", "labels", "protocol", "operation")
        rules = self.get("/sampling")["rules"]
        if rules:
            selectors = [{name: rule[name] for name in fields if rule[name]} for rule in rules]
            assert self.http.post("/sampling/batch", json={"remove": selectors}).is_success

        def only_the_living() -> bool:
            return all(Path(f"/proc/{target['pid']}").exists() for target in self.get("/targets"))

        eventually(only_the_living, "no target of an earlier test is left")

    def target(self, pid: int) -> dict[str, Any] | None:
        return next((target for target in self.get("/targets") if target["pid"] == pid), None)

    def hooked(self, service: str, count: int = 1) -> list[dict[str, Any]]:
        """The service's hooked targets, once there are at least so many."""

        def found() -> list[dict[str, Any]]:
            targets = [t for t in self.get("/targets") if t["service"] == service and t["kind"] == "hooked"]
            return targets if len(targets) >= count else []

        return list(eventually(found, f"{count} hooked targets of {service}"))
