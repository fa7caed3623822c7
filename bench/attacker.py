"""An attack of `bench/attacks.py` under way."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from bench import attacks
from spandial.abi import ABI, Flag

__all__ = ["LIBRARIES", "Attacker"]

LIBRARIES = 520  # more than the agent has places for
_HELLO = json.dumps({"abi": ABI, "service": attacks.SERVICE, "default": (1 << 8) | int(Flag.VALID)})
# The system's where there is one: whoever attacks must be able to read it. -I -S: and nothing of ours.
_PYTHON = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable


class Attacker:
    """All processes of an attack.

    Args:
        name: of the attack.
        folder: gets a folder of the attacker's.
        run_dir: of the agent.
        port: of the agent, over TCP.
        libraries: how many the attack of that name maps.
    """

    def __init__(self, name: str, folder: Path, run_dir: Path, port: int, libraries: int = LIBRARIES) -> None:
        own = folder / "attacker"
        own.mkdir(exist_ok=True)
        os.chown(own, attacks.USER, attacks.USER)
        self._errors = folder / "attacker.errors"
        environment = {"PATH": "/usr/bin:/bin"}
        if attacks.ATTACKS[name][1]:
            environment["OTEL_SERVICE_NAME"] = attacks.SERVICE
        command = [_PYTHON, "-I", "-S", attacks.__file__, name, str(run_dir), str(port), _HELLO, str(libraries)]
        with open(self._errors, "w") as errors:
            self._process = subprocess.Popen(
                command,
                cwd=own,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
                text=True,
            )
        self.pid = self._process.pid

    def stands(self, patience_s: float) -> bool:
        """Wait until it does, or for so long. Raises RuntimeError if the program ended before."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], patience_s)[0]:
            return False
        if not self._process.stdout.readline():
            self._process.wait()
            raise RuntimeError(f"the attack ended: {self.failure()}")
        return True

    def failure(self) -> str:
        """The last words of a program that ended by itself; empty while it goes on."""
        if self._process.poll() is None:
            return ""
        return (self._errors.read_text().strip().splitlines() or ["it said nothing"])[-1]

    def close(self) -> None:
        """End all its processes, and wait for them."""
        while True:
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                break
            self._process.poll()  # what it started is init's
            time.sleep(0.02)
        self._process.communicate()
