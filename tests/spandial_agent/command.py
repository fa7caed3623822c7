"""`spandial` as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Mapping

from tests.agent_process import PATIENCE_S

__all__ = ["run", "run_all", "start"]

_NO_AGENT = {"SPANDIAL_RUN_DIR": "/nonexistent", "SPANDIAL_STATE_DIR": "/nonexistent"}


def _environment(settings: Mapping[str, str] | None) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SPANDIAL_")}
    return {**inherited, **(_NO_AGENT if settings is None else settings)}


def start(settings: Mapping[str, str] | None, *arguments: str) -> subprocess.Popen[str]:
    """Run `python -m spandial_agent` under these SPANDIAL_* variables, without waiting for its end."""
    return subprocess.Popen(
        [sys.executable, "-m", "spandial_agent", *arguments],
        env=_environment(settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(settings: Mapping[str, str] | None, *arguments: str, code: int = 0) -> tuple[str, str]:
    """What it printed on stdout and stderr, after it has ended with this exit code and without a traceback."""
    return run_all(settings, [list(arguments)], code)[0]


def run_all(settings: Mapping[str, str] | None, commands: Iterable[list[str]], code: int = 0) -> list[tuple[str, str]]:
    """The same of several commands at once."""
    started = [(command, start(settings, *command)) for command in commands]
    printed = []
    for command, process in started:
        out, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == code, (command, process.returncode, out, err)
        assert "Traceback" not in err
        printed.append((out, err))
    return printed
