"""Databases and their load generators: the client as target, as an application is one, or the server.

The servers are those of the tests (tests/e2e/databases.py), which do not run as root, on TCP at 127.0.0.1. The target
has a core for itself, whatever it talks to another.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import psycopg
from tests.e2e.databases import postgres, postgres_template, redis_database

from bench.servers import Load, cpu_ns, ended_children_ns, schedule, target_environment
from spandial.abi import EntryKind

__all__ = ["DATABASES", "Generator", "ServedByGenerator", "missing_for"]

_CLIENTS = 16
_PGBENCH_LOOKS = 2  # for its tables: how large they are, and whether they are partitioned
_POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
_PATH = os.pathsep.join([*map(str, reversed(_POSTGRES)), os.environ.get("PATH", ""), "/usr/sbin"])
_NEEDS = {"redis": ("redis-server", "redis-benchmark"), "postgres": ("initdb", "postgres", "pgbench")}


def missing_for(kind: str) -> list[str]:
    """One sentence for each program that a kind of `DATABASES` lacks here."""
    needs = _NEEDS["redis" if kind.startswith("redis") else "postgres"]
    return [f"{name} is not installed." for name in needs if shutil.which(name, path=_PATH) is None]


class Generator:
    """A load generator as target: a shell that becomes it, so that its pid is known before it sends anything.

    Attributes:
        kind: of the entries that it sends.
        beside: entries of each run beside the operations.

    Args:
        command: for so many operations.
        rate: operations a second, by its own account; None if it does not say that it did all of them.
        core: where it runs.
    """

    kind = EntryKind.DB

    def __init__(
        self,
        command: Callable[[int], list[str]],
        rate: Callable[[str, int], float | None],
        core: int,
        beside: int = 0,
    ) -> None:
        self.beside = beside
        self._command, self._rate, self._core = command, rate, core
        self._process: subprocess.Popen[str] | None = None
        self._operations = 0

    def begin(self, operations: int, *options: str, service: str | None = None) -> int:
        """The pid of what does so many operations at `finish`.

        Args:
            options: of the command, beside its own.
            service: OTEL_SERVICE_NAME, to be a target of agents.
        """
        self._operations = operations
        shell = ["taskset", "--cpu-list", str(self._core), "sh", "-c", 'echo ready && read -r go && exec "$@"', "sh"]
        self._process = subprocess.Popen(
            [*shell, *self._command(operations), *options],
            env=target_environment(service),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()
        return self._process.pid

    def finish(self) -> Load:
        """Processor time is from the shell's last moment to the process's end, the generator's own start included."""
        process, self._process = self._process, None
        assert process is not None
        ended = ended_children_ns()
        ran = cpu_ns(process.pid)
        began = time.monotonic_ns()
        said, _ = process.communicate("go\n")
        took = time.monotonic_ns() - began
        ran = ended_children_ns() - ended - ran
        rate = self._rate(said, self._operations) if process.returncode == 0 else None
        if rate is None:
            raise RuntimeError(f"not every operation was done:\n{said}")
        return Load(rate, ran / self._operations, ran / took)

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate()  # a shell whose input ends
            self._process = None


class ServedByGenerator:
    """A database server as target, loaded by a generator from another core. What it receives is no entry."""

    kind = EntryKind.DB

    def __init__(self, pid: int, generator: Generator) -> None:
        self.beside = generator.beside
        self._pid, self._generator = pid, generator
        self._operations = 0

    def begin(self, operations: int) -> int:
        self._operations = operations
        self._generator.begin(operations)
        return self._pid

    def finish(self) -> Load:
        before = schedule(self._pid)
        load = self._generator.finish()
        ran, waited = (after - earlier for after, earlier in zip(schedule(self._pid), before))
        return Load(load.rate, ran / self._operations, (ran + waited) / 1e9 * load.rate / self._operations)

    def close(self) -> None:
        self._generator.close()


@contextmanager
def _on_core(core: int) -> Iterator[None]:
    """What is started meanwhile runs there."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _found(name: str) -> str:
    path = shutil.which(name, path=_PATH)
    assert path is not None  # missing_for has looked
    return path


def _redis_benchmark(port: int, core: int) -> Generator:
    def command(operations: int) -> list[str]:
        where = ["-h", "127.0.0.1", "-p", str(port)]
        return [_found("redis-benchmark"), *where, "-n", str(operations), "-c", str(_CLIENTS), "GET", "text"]

    def rate(said: str, operations: int) -> float | None:
        completed = re.search(r"(\d+) requests completed in ", said)
        summary = re.search(r"throughput summary: ([\d.]+) requests per second", said)
        done = completed is not None and int(completed[1]) == operations
        return float(summary[1]) if done and summary is not None else None

    return Generator(command, rate, core, beside=2)  # CONFIG GET twice, on a connection of its own


def _redis_client(stack: ExitStack, core: int, load_core: int) -> Generator:
    with _on_core(load_core):
        server = stack.enter_context(redis_database())
    return _redis_benchmark(server.port, core)


def _redis_server(stack: ExitStack, core: int, load_core: int) -> ServedByGenerator:
    with _on_core(core):
        server = stack.enter_context(redis_database())
    return ServedByGenerator(server.pid, _redis_benchmark(server.port, load_core))


def _pgbench(mode: str, stack: ExitStack, core: int, load_core: int) -> Generator:
    with _on_core(load_core):
        server = stack.enter_context(postgres(stack.enter_context(postgres_template())))
    with psycopg.connect(server.address(unix=True)) as connection:
        connection.execute("ALTER ROLE app SET log_statement = 'none'")  # the tests have it log every statement
    where = ["-h", "127.0.0.1", "-p", str(server.port), "-U", "app"]
    subprocess.run([_found("pgbench"), *where, "-i", "-q", "-s", "1", "app"], check=True, capture_output=True)

    def command(operations: int) -> list[str]:
        each = ["-c", str(_CLIENTS), "-t", str(operations // _CLIENTS)]
        return [_found("pgbench"), *where, "-n", "-S", "-M", mode, *each, "app"]

    def rate(said: str, operations: int) -> float | None:
        done = f"actually processed: {operations}/{operations}\n" in said
        tps = re.search(r"^tps = ([\d.]+) \(without initial connection time\)", said, re.MULTILINE)
        return float(tps[1]) if done and tps is not None else None

    return Generator(command, rate, core, beside=_PGBENCH_LOOKS)


DATABASES: dict[str, Callable[[ExitStack, int, int], Generator | ServedByGenerator]] = {
    "redis-benchmark": _redis_client,
    "redis-server": _redis_server,
    "pgbench -M simple": partial(_pgbench, "simple"),
    "pgbench -M prepared": partial(_pgbench, "prepared"),
}
