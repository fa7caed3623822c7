"""Many hooked processes that do nothing: `python -m bench.crowd RUN_DIR COUNT` forks them and waits.

Each process registers with spandial.Sampler as a service of its own. All end with standard input, and so with whoever
started them, however that ends. Like bench/switch.py and bench/spinner.py it is also started of older checkouts: the
first line that it writes has the pids.
"""

from __future__ import annotations

import os
import signal
import sys

from spandial import Sampler

__all__ = ["SERVICE"]

SERVICE = "bench-crowd"


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
