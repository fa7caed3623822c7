"""The servers under load, each one process on one core, and the load."""

from __future__ import annotations

import http.client
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from bench.checkout import ROOT

__all__ = ["SERVERS", "Load", "Server", "cpu_ns"]

_CONNECTIONS = 32
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


def _schedule(pid: int) -> tuple[int, int]:
    """How long the main thread ran, and how long it could have but waited for its core, in ns (sched-stats.rst)."""
    ran, waited = Path(f"/proc/{pid}/schedstat").read_text().split()[:2]
    return int(ran), int(waited)


class Load(NamedTuple):
    """One run of the load generator.

    Attributes:
        rate: requests a second.
        cpu_ns: the server's processor time for one request, programs in the kernel on its behalf included.
        busy: the share of the run in which the server had work; near 1 if it was the server that set the pace.
    """

    rate: float
    cpu_ns: float
    busy: float


class Server:
    """A server on a core of its own. It is a target of agents if it names a service.

    Args:
        kind: a key of `SERVERS`.
        folder: for its files.
        service: OTEL_SERVICE_NAME; None for a bystander.
        core: where it runs.
        load_core: where the load comes from.
    """

    def __init__(self, kind: str, folder: Path, service: str | None, core: int, load_core: int) -> None:
        self._port = _free_port()
        self._load_core = load_core
        folder.mkdir(parents=True)
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "SPANDIAL_"))}
        if service is not None:
            environment["OTEL_SERVICE_NAME"] = service
        self._process = subprocess.Popen(
            ["taskset", "--cpu-list", str(core), *SERVERS[kind](folder, self._port)], cwd=ROOT, env=environment
        )
        self.pid = self._process.pid
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def load(self, requests: int) -> Load:
        """Send exactly so many requests, with a traceparent each, over connections that stay open."""
        command = ["taskset", "--cpu-list", str(self._load_core), "h2load", "--h1", f"--clients={_CONNECTIONS}"]
        command += [f"--requests={requests}", f"--header={_TRACEPARENT}", f"http://127.0.0.1:{self._port}/"]
        before = _schedule(self.pid)
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        ran, waited = (after - earlier for after, earlier in zip(_schedule(self.pid), before))
        finished, succeeded = _FINISHED.search(said), _SUCCEEDED.search(said)
        if not finished or not succeeded or int(succeeded[1]) != requests:
            raise RuntimeError(f"not every request was answered:\n{said}")
        rate = float(finished[1])
        return Load(rate, ran / requests, (ran + waited) / 1e9 * rate / requests)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()

    def _wait(self) -> None:
        for _ in range(500):
            if self._process.poll() is not None:
                raise RuntimeError(f"the server ended with exit code {self._process.returncode}")
            connection = http.client.HTTPConnection("127.0.0.1", self._port)
            try:
                connection.request("GET", "/")
                if connection.getresponse().read() == b"hello\n":
                    return
            except OSError:
                time.sleep(0.02)
            finally:
                connection.close()
        raise RuntimeError("the server does not serve")


def _free_port() -> int:
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


SERVERS = {"uvicorn": _uvicorn, "nginx": _nginx}
