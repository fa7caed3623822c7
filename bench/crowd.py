"""Many hooked processes that do nothing: `python -m bench.crowd RUN_DIR COUNT` forks them and waits.

Each process registers with spandial.Sampler as a service of its own. All end with standard input, and so with whoever
started them, however that ends. Like bench/switch.py and bench/spinner.py it is also started of older checkouts: the
first line that it writes has the pids.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from spandial import Sampler

if TYPE_CHECKING:
    from tests.agent_process import AgentProcess

    from bench.trees import Tree

__all__ = ["SERVICE", "Crowd"]

SERVICE = "bench-crowd"


class Crowd:
    """The processes, as the benchmark sees them, while they start.

    Args:
        tree: whose sampler they have.
        run_dir: of the agent to register with.
        count: how many there are.
    """

    def __init__(self, tree: Tree, run_dir: Path, count: int) -> None:
        self._process = tree.start(["-m", "bench.crowd", str(run_dir), str(count)], sorted(os.sched_getaffinity(0)))
        self._count = count

    def pids(self) -> list[int]:
        """Of all, once they have been forked."""
        assert self._process.stdout is not None
        return [int(pid) for pid in self._process.stdout.readline().split()]

    def hooked(self, agent: AgentProcess) -> bool:
        """The agent lists them all."""
        found = [target for target in agent.get("/targets") if target["service"].startswith(SERVICE)]
        return [target["kind"] for target in found] == ["hooked"] * self._count

    def close(self) -> None:
        self._process.communicate()


def _main(run_dir: str, count: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    held, ours = os.pipe()
    children = []
    for index in range(count):
        child = os.fork()
        if child == 0:
            os.close(ours)
            sampler = Sampler("10%", service=f"{SERVICE}-{index}", env="bench", run_dir=run_dir)
            os.read(held, 1)  # ends when the parent does
            del sampler
            os._exit(0)
        children.append(child)
    print(*children, flush=True)
    sys.stdin.read()
    os.close(ours)
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]))
