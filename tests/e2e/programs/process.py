"""The tests' side of the programs: start them, have them work at a word, read what they did, end them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import pytest

from tests.e2e.programs.ending import at_end, hold_at_end
from tests.e2e.programs.operations import Operation

__all__ = ["Done", "Load", "Program", "Report", "Tool", "executable"]

_ROOT = Path(__file__).parents[3]
_REQUIRED = os.environ.get("SPANDIAL_REQUIRE_KERNEL") == "1"


def executable(name: str) -> str:
    """The path of a program, also of one that Debian keeps off the PATH. Without it the test is skipped, or fails where
    the marker `needs` would fail."""
    postgres = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True)
    path = shutil.which(name, path=os.pathsep.join([*map(str, postgres), os.environ["PATH"], "/usr/sbin"]))
    if path is None:
        (pytest.fail if _REQUIRED else pytest.skip)(f"{name} is not installed: run deploy/setup")
    return path


class Done(NamedTuple):
    """What was done, by a client's own account or by a server's: equal if they are at one.

    Attributes:
        operations: how many of each kind; no kind of which there were none.
        errors: how many of each code; an operation that failed is in both.
    """

    operations: dict[str, int]
    errors: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.operations.values())

    def since(self, before: Done) -> Done:
        """What came after `before`, where both count from the same beginning."""
        operations = Counter(self.operations) - Counter(before.operations)
        return Done(dict(operations), dict(Counter(self.errors) - Counter(before.errors)))


class Report(NamedTuple):
    """A load program's account: the sums, and each operation if it was asked for."""

    done: Done
    each: list[Operation]


class _Process:
    """A process with pipes in a session of its own; it ends when the context does."""

    def __init__(self, command: list[str], environment: dict[str, str] | None) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            command,
            env={**os.environ, **(environment or {})},
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._input, self._output = self.process.stdin, self.process.stdout

    @property
    def pid(self) -> int:
        return self.process.pid

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End its input, which ends it; kill it if that does not."""
        try:
            self._input.close()
        except BrokenPipeError:
            pass
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._output.close()
        self._errors.close()

    def _read(self, read: Callable[[], str], seconds: float) -> str:
        """What is read, or nothing if that takes longer: then the process is killed."""
        timer = threading.Timer(seconds, self.process.kill)
        timer.start()
        try:
            return read()
        finally:
            timer.cancel()

    def _failure(self) -> AssertionError:
        self.process.wait(5)
        self._errors.seek(0)
        return AssertionError(f"{self.process.args!r} ended with {self.process.returncode}:\n{self._errors.read()}")


class Program(_Process):
    """A process that answers each line of JSON with a line of JSON. It says that it is ready by a first line.

    Attributes:
        ready: that first line.
    """

    def __init__(self, command: list[str], environment: dict[str, str] | None = None) -> None:
        super().__init__(command, environment)
        try:
            self.ready = self._answer(30)
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Program:
        return self

    def ask(self, request: dict[str, Any], seconds: float = 60) -> dict[str, Any]:
        """Raises AssertionError with what the program wrote to standard error if it ends or takes too long."""
        try:
            self._input.write(json.dumps(request) + "\n")
            self._input.flush()
        except BrokenPipeError:
            raise self._failure() from None
        return self._answer(seconds)

    def _answer(self, seconds: float) -> dict[str, Any]:
        line = self._read(self._output.readline, seconds)
        if not line:
            raise self._failure()
        return dict(json.loads(line))


class Load(Program):
    """A load program, `tests/e2e/programs/<name>_load.py`. It opens connections only while it does what `run` asks,
    and lives on until the context ends: whoever watches it can find it before, and look at it after.

    Args:
        environment: variables beside the test's own, labels for example.
    """

    def __init__(self, name: str, environment: dict[str, str] | None = None) -> None:
        super().__init__([sys.executable, "-m", f"tests.e2e.programs.{name}_load"], environment)

    def __enter__(self) -> Load:
        return self

    def run(self, mode: str, *, each: bool = False, seconds: float = 60, **arguments: Any) -> Report:
        """One load to its end. The modes and their arguments are the functions of the program."""
        answer = self.ask({"mode": mode, "each": each, **arguments}, seconds)
        return Report(Done(answer["operations"], answer["errors"]), [Operation(*one) for one in answer["each"]])


class Tool(_Process):
    """A load generator that somebody else wrote: a shell that becomes it at `run`, in the same process and with the
    same environment, so that whoever watches the process can find it before it works.

    Args:
        check: raises AssertionError unless the tool's output says that it did what was asked of it.
        done: what that was.
    """

    def __init__(
        self, command: list[str], check: Callable[[str], None], done: Done, environment: dict[str, str] | None = None
    ) -> None:
        super().__init__(["sh", "-c", 'echo ready && read -r go && exec "$@"', "sh", *command], environment)
        self._check = check
        self._done = done
        assert self._read(self._output.readline, 30) == "ready\n"

    def __enter__(self) -> Tool:
        return self

    def run(self, seconds: float = 60, look: Callable[[], None] | None = None) -> Done:
        """Run to the end. Raises AssertionError unless the tool did what it should, by its own account.

        Args:
            look: called when the tool has done everything and its process still is there.
        """
        if look is not None:
            hold_at_end(self.pid)
        self._input.write("go\n")
        self._input.close()

        def read() -> str:
            if look is not None:
                at_end(self.pid, look)  # all it says until then must fit into the pipe
            return self._output.read()

        output = self._read(read, seconds)
        if self.process.wait() != 0:
            raise self._failure()
        self._check(output)
        return self._done
