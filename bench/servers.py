"""The servers under load, each one process on one core, and the load."""

from __future__ import annotations

import http.client
import json
import os
import re
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from bench.checkout import ROOT
from spandial.abi import EntryKind

__all__ = [
    "SERVERS",
    "GrpcServer",
    "Load",
    "Server",
    "cpu_ns",
    "ended_children_ns",
    "free_port",
    "megabytes",
    "schedule",
    "target_environment",
]

_CONNECTIONS = 32
_STREAMS = 4  # of each connection, for gRPC
_GRPC_MESSAGE = b"\0\0\0\0\7message"  # not compressed, 7 bytes long
# The lower 56 bits, by which spandial decides, lie in the middle: dropped at 0 and 1 %, kept at 100 %.
_TRACEPARENT = "traceparent: 00-4bf92f3577b34da6a3800000000e4736-00f067aa0ba902b7-01"
_FINISHED = re.compile(r"^finished in [^,]+, ([\d.]+) req/s", re.MULTILINE)
_SUCCEEDED = re.compile(r" (\d+) succeeded,")

# master_process off: one process to load and to count. It also keeps nginx's hands off its environment block, which
# otherwise becomes its process title, and with it the name of the service.
_NGINX = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
events {{ worker_connections 512; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
    uwsgi_temp_path {folder}; scgi_temp_path {folder};
    server {{ listen 127.0.0.1:{port}; location / {{ return 200 "hello\\n"; }} }}
}}
"""


def cpu_ns(pid: int) -> int:
    """Processor time of a process and its threads: the clock that clock_getcpuclockid(3) gives (CPUCLOCK_SCHED)."""
    return time.clock_gettime_ns(~pid << 3 | 2)


def megabytes(pid: int, file: str, key: str) -> float:
    """A line of a process's `status` or `smaps_rollup`."""
    found = re.search(rf"^{key}:\s+(\d+) kB", Path(f"/proc/{pid}/{file}").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024 / 1e6


def ended_children_ns() -> int:
    """Processor time of this process's children that have ended and been waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return round((used.ru_utime + used.ru_stime) * 1e9)


def target_environment(service: str | None) -> dict[str, str]:
    """The variables of a target that names a service, or of a process that is none."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "SPANDIAL_"))}
    return environment if service is None else {**environment, "OTEL_SERVICE_NAME": service}


def schedule(pid: int) -> tuple[int, int]:
    """How long a process ran, and how long its main thread could have but waited for its core, in ns (sched-stats.rst).

    Other threads' waits are left out: most of them wait for each other.
    """
    waited = Path(f"/proc/{pid}/schedstat").read_text().split()[1]
    return cpu_ns(pid), int(waited)


class Load(NamedTuple):
    """One run of a load generator.

    Attributes:
        rate: operations a second.
        cpu_ns: the target's processor time for one, programs in the kernel on its behalf included.
        busy: the share of the run in which the target had work; near 1 if it was the target that set the pace.
    """

    rate: float
    cpu_ns: float
    busy: float


class Server:
    """A server on a core of its own. It is a target of agents if it names a service.

    Attributes:
        kind: of the entries that it receives.
        beside: entries that each run has beside the requests.

    Args:
        kind: a key of `SERVERS`.
        folder: for its files.
        service: OTEL_SERVICE_NAME; None for a bystander.
        core: where it runs.
        load_core: where the load comes from.
    """

    kind = EntryKind.HTTP
    beside = 0

    def __init__(self, kind: str, folder: Path, service: str | None, core: int, load_core: int) -> None:
        self._port = free_port()
        self._load_core = load_core
        self._folder = folder
        self._requests = 0
        folder.mkdir(parents=True)
        # A session of its own: Ctrl-C is for the benchmark, which then ends it. It ends with it in any case.
        place = ["taskset", "--cpu-list", str(core), "setpriv", "--pdeathsig", "TERM"]
        self._process = subprocess.Popen(
            [*place, *SERVERS[kind](folder, self._port)],
            cwd=ROOT,
            env=target_environment(service),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.pid = self._process.pid
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def load(self, requests: int, pace: float | None = None) -> Load:
        """Send exactly so many requests, with a traceparent each, over connections that stay open.

        Args:
            pace: requests a second, instead of as many as can be.
        """
        command = ["taskset", "--cpu-list", str(self._load_core), "h2load", *self._options()]
        command += [f"--clients={_CONNECTIONS}", f"--requests={requests}", f"--header={_TRACEPARENT}", self._url()]
        if pace is not None:
            command.append(f"--rps={pace / _CONNECTIONS}")
        before = schedule(self.pid)
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        ran, waited = (after - earlier for after, earlier in zip(schedule(self.pid), before))
        finished, succeeded = _FINISHED.search(said), _SUCCEEDED.search(said)
        if not finished or not succeeded or int(succeeded[1]) != requests:
            raise RuntimeError(f"not every request was answered:\n{said}")
        rate = float(finished[1])
        return Load(rate, ran / requests, (ran + waited) / 1e9 * rate / requests)

    def begin(self, operations: int) -> int:
        """The pid of what is to be watched while `finish` sends so many requests."""
        self._requests = operations
        return self.pid

    def finish(self) -> Load:
        return self.load(self._requests)

    def _options(self) -> list[str]:
        return ["--h1"]

    def _url(self) -> str:
        return f"http://127.0.0.1:{self._port}/"

    def close(self) -> None:
        self._process.terminate()
        self._process.communicate()

    def _wait(self) -> None:
        for _ in range(500):
            if self._process.poll() is not None:
                raise RuntimeError(f"the server ended with exit code {self._process.returncode}")
            if self._serves():
                return
            time.sleep(0.02)
        raise RuntimeError("the server does not serve")

    def _serves(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self._port)
        try:
            connection.request("GET", "/")
            return connection.getresponse().read() == b"hello\n"
        except OSError:
            return False
        finally:
            connection.close()


class GrpcServer(Server):
    """grpcio's server with a method that answers with its request, called by h2load: HTTP/2 without TLS. It is the
    tests' (`tests/e2e/programs/grpc_server.py`), which says itself what it served."""

    kind = EntryKind.GRPC

    def _options(self) -> list[str]:
        message = self._folder / "message"
        message.write_bytes(_GRPC_MESSAGE)
        headers = ("content-type: application/grpc", "te: trailers")
        return [f"--max-concurrent-streams={_STREAMS}", f"--data={message}", *(f"--header={each}" for each in headers)]

    def _url(self) -> str:
        return f"http://127.0.0.1:{self._port}/echo.Echo/Unary"

    def _serves(self) -> bool:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdout.readline()  # once it is ready
        calls = _CONNECTIONS
        self.load(calls)
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        # h2load knows no status of gRPC's.
        served = json.loads(self._process.stdout.readline())
        if served != {"operations": {"/echo.Echo/Unary": calls}, "errors": {}}:
            raise RuntimeError(f"the gRPC server did something else than answer {calls} calls: {served}")
        return True


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _uvicorn(folder: Path, port: int) -> list[str]:
    options = ["--port", str(port), "--log-level", "warning", "--no-access-log", "--lifespan", "off"]
    return [sys.executable, "-m", "uvicorn", "bench.hello:app", *options]


def _nginx(folder: Path, port: int) -> list[str]:
    configuration = folder / "nginx.conf"
    configuration.write_text(_NGINX.format(folder=folder, port=port))
    return ["nginx", "-e", str(folder / "nginx.log"), "-c", str(configuration)]


def _grpcio(folder: Path, port: int) -> list[str]:
    return [sys.executable, "-m", "tests.e2e.programs.grpc_server", "64", f"127.0.0.1:{port}"]


SERVERS = {"uvicorn": _uvicorn, "nginx": _nginx, "grpcio": _grpcio}
