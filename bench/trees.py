"""A checkout as something to measure: where its processes run, what they import, and its agent.

Whatever bench/compare does with another tree, it does by what every tree keeps to:

- `python -m bench.switch PATH`, `python -m bench.spinner RUN_DIR` and `python -m bench.crowd RUN_DIR COUNT`, with what
  they read and write;
- `python -m spandial_agent agent` with SPANDIAL_* variables, and the agent's HTTP interface;
- `from spandial import Sampler`, and OpenTelemetry's interface of a sampler.

Packages may move between the folders of `_FOLDERS`, and modules within their packages as they like.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.agent_process import AgentProcess, compiled_of

from bench.checkout import ROOT

__all__ = ["HERE", "NotATree", "Tree"]

_FOLDERS = ("hook", "agent", "api", ".")  # of a tree, where packages are
_PACKAGES = ("spandial", "spandial_agent", "spandial_api", "bench", "tests")
_PROGRAMS = ("bench/switch.py", "bench/spinner.py", "bench/crowd.py")
_WHERE = f"import json, {', '.join(_PACKAGES)}; print(json.dumps([p.__file__ for p in ({', '.join(_PACKAGES)})]))"


class NotATree(Exception):
    """What is no checkout of spandial, or none that can run here; the message says why and what to do."""


class Tree:
    """One checkout.

    Attributes:
        path: its folder.
        python: the interpreter of its processes.
        variables: what its processes need beside the environment of this one.
    """

    def __init__(self, path: Path, python: str = sys.executable) -> None:
        self.path, self.python = path, python
        folders = [self.path / folder for folder in _FOLDERS if (self.path / folder).is_dir()]
        self.variables = {"PYTHONPATH": os.pathsep.join(map(str, folders))}

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, **self.variables}

    def check(self) -> None:
        """Raises NotATree, also where a process of this tree would import from another one."""
        lacking = [name for name in _PROGRAMS if not (self.path / name).is_file()]
        if lacking:
            raise NotATree(
                f"{self.path} is no checkout of spandial that can be compared: it has no {', no '.join(lacking)}. "
                "Give the folder of one, for example of `git worktree add --detach FOLDER COMMIT`."
            )
        where = self.run("-c", _WHERE)
        if where.returncode:
            reason = (where.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise NotATree(
                f"{self.python} cannot import the packages of {self.path}: {reason}. If that tree needs other "
                "dependencies, name an interpreter that has them with --old-python."
            )
        for package, file in zip(_PACKAGES, json.loads(where.stdout)):
            if not Path(file).resolve().is_relative_to(self.path.resolve()):
                raise NotATree(f"a process of {self.path} imports {package} from {file}, which is another tree.")

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Its interpreter with these arguments, to the end."""
        command = [self.python, *arguments]
        return subprocess.run(command, cwd=self.path, env=self.environment, capture_output=True, text=True)

    def start(self, arguments: list[str], cores: Iterable[int], **options: object) -> subprocess.Popen[str]:
        """Its interpreter with these arguments, to talk to by standard input and output.

        Args:
            cores: where it runs.
            options: of subprocess.Popen.
        """
        place = ["taskset", "--cpu-list", ",".join(map(str, cores))]
        process: subprocess.Popen[str] = subprocess.Popen(
            [*place, self.python, *arguments],
            cwd=self.path,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            **options,  # type: ignore[call-overload]
        )
        return process

    def agent(self, folder: Path, **settings: str) -> AgentProcess:
        """An agent of this tree, not started yet."""
        compiled = str(compiled_of(self.path / "tests"))
        settings = {"SPANDIAL_COMPILED_DIR": compiled, **self.variables, **settings}
        return AgentProcess(folder, python=self.python, cwd=self.path, **settings)


HERE = Tree(ROOT)
