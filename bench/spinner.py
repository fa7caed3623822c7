"""A process that decides without pause and notes when its decisions turn: the eyes of `bench/latency`.

As a program (`python -m bench.spinner RUN_DIR [READER_FD]`) it registers as a hook, waits for a line with its row's
number on standard input, then decides for one and the same trace until standard input ends, with spandial.Sampler and,
if it was given one, with a BPF program. Times are CLOCK_MONOTONIC, the same for all processes.

What it reads and writes is a contract between trees: bench/compare also starts this program of an older checkout. The
row's number is answered by a line, the input's end by the turns of sampler and program, each
`[[old_began, new_ended, kept], ...]`.
"""

from __future__ import annotations

import bisect
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from http.client import HTTPResponse
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from bench.trees import HERE, Tree
from spandial_agent.kernel.libbpf import RawTracepointRun

__all__ = ["SERVICE", "Change", "Seen", "Spinner", "Turn", "look_up", "put"]

SERVICE = "bench-latency"
_RANDOMNESS = 1 << 55  # kept at 100 %, dropped at 0 %


class Turn(NamedTuple):
    """The outcome changed, in ns: when the last old decision began, when the first new one ended, and what it was."""

    old_began: int
    new_ended: int
    kept: bool


class Change(NamedTuple):
    """One change of the rate, in ns: when it began, when it was answered, and what it makes of the spinner's trace."""

    began: int
    answered: int
    keeps: bool


class Seen(NamedTuple):
    """What the spinner saw of some changes.

    Attributes:
        waits: from each change's beginning to the end of the first decision that obeyed it, in ns.
        stale: for each change, how long after its answer a decision still began that obeyed the old rate, in ns.
        missed: changes that came and went while the spinner was not running.
    """

    waits: list[int]
    stale: list[int]
    missed: int


def look_up(changes: Sequence[Change], turns: Sequence[Turn]) -> Seen:
    """Match changes, each the opposite of the one before, with turns.

    A change's turn is the first of its kind since it began, and comes before the next change has been answered.
    """
    waits, stale, missed = [], [], 0
    ends = [turn.new_ended for turn in turns]
    for change, following in zip_longest(changes, changes[1:]):
        later = turns[bisect.bisect_right(ends, change.began) :][:2]
        turn = next((turn for turn in later if turn.kept == change.keeps), None)
        if turn is None or (following is not None and turn.new_ended > following.answered):
            missed += 1
            continue
        waits.append(turn.new_ended - change.began)
        stale.append(max(0, turn.old_began - change.answered))
    return Seen(waits, stale, missed)


def put(connection: socket.socket, rate: int) -> Change:
    """Turn the dial of the spinners over an agent's `api.sock`. Raises RuntimeError if that is not answered 200."""
    target = f"/sampling?rate={rate}&service={SERVICE}"
    request = f"PUT {target} HTTP/1.1\r\nHost: spandial\r\nContent-Length: 0\r\n\r\n".encode()
    began = time.monotonic_ns()
    connection.sendall(request)
    response = HTTPResponse(connection, method="PUT")
    response.begin()
    body = response.read()
    answered = time.monotonic_ns()
    if response.status != 200:
        raise RuntimeError(f"PUT /sampling was answered {response.status}: {body.decode()}")
    return Change(began, answered, rate == 100)


class Spinner:
    """The process, as the benchmark sees it.

    Args:
        run_dir: of the agent to register with.
        core: where it runs, alone if possible.
        reader_fd: a loaded `read_row` program of `reader.c`, or None.
        tree: whose sampler decides.
    """

    def __init__(self, run_dir: Path, core: int, reader_fd: int | None = None, tree: Tree = HERE) -> None:
        readers = [] if reader_fd is None else [reader_fd]
        arguments = ["-m", "bench.spinner", str(run_dir), *map(str, readers)]
        self._tree = tree
        self._process = tree.start(arguments, [core], pass_fds=readers)
        self.pid = self._process.pid

    def start(self, row: int) -> None:
        """Begin to decide; on return it has begun. Raises RuntimeError."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{row}\n")
        self._process.stdin.flush()
        if not self._process.stdout.readline():
            raise RuntimeError(f"the spinner of {self._tree.path} ended with exit code {self._process.wait()}")

    def stop(self) -> tuple[list[Turn], list[Turn]]:
        """The turns of the sampler's decisions and of the kernel's."""
        seen = json.loads(self._process.communicate()[0] or "[[], []]")
        hook, kernel = ([Turn(*turn) for turn in turns] for turns in seen)
        return hook, kernel

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


def _spin(decide: Callable[[], bool], decide_in_kernel: Callable[[], bool], stop: threading.Event) -> list[list[Turn]]:
    now = time.monotonic_ns
    turns: list[list[Turn]] = [[], []]
    deciders = (decide, decide_in_kernel)
    was = [decide() for decide in deciders]
    old = [now(), now()]
    stopped = stop.is_set
    while not stopped():
        for index in (0, 1):
            began = now()
            kept = deciders[index]()
            if kept != was[index]:
                turns[index].append(Turn(old[index], now(), kept))
                was[index] = kept
            old[index] = began
    return turns


def _main(run_dir: str, *reader: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from opentelemetry.sdk.trace.sampling import Decision

    from spandial import Sampler

    sampler = Sampler(service=SERVICE, run_dir=run_dir)
    row = int(sys.stdin.readline())
    kept = Decision.RECORD_AND_SAMPLE

    def decide() -> bool:
        return sampler.should_sample(None, _RANDOMNESS, "bench").decision is kept

    def decide_in_kernel() -> bool:
        return False

    if reader:
        run = RawTracepointRun(int(reader[0]))

        def decide_in_kernel() -> bool:
            return bool(run(row, _RANDOMNESS))

    stop = threading.Event()

    def wait() -> None:
        sys.stdin.read()  # ends with the benchmark, however that ends
        stop.set()

    threading.Thread(target=wait, daemon=True).start()
    print("deciding", flush=True)
    turns = _spin(decide, decide_in_kernel, stop)
    print(json.dumps(turns), flush=True)
    os._exit(0)


if __name__ == "__main__":
    _main(*sys.argv[1:])
