"""Real servers as processes: uvicorn and gunicorn with the hook, nginx and Node without."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.agent_process import AgentProcess, eventually, import_path

__all__ = ["NginxShell", "Server", "free_port", "gunicorn", "h2load", "labels", "nginx", "node", "running", "uvicorn"]

_HERE = Path(__file__).parent
_DEMO = _HERE.parent.parent / "deploy" / "demo"
_BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::", 0))
        return int(probe.getsockname()[1])


class Server:
    """A server process in a session of its own, on a port for IPv4 and IPv6 or on a Unix socket.

    Args:
        within: a command that runs the server's in namespaces, and waits for it: then the server is its child.
        begun: called with the process's id before it is waited for.
    """

    def __init__(
        self,
        command: list[str],
        environment: dict[str, str],
        log: Path,
        url: str,
        socket_path: str = "",
        within: Sequence[str] = (),
        begun: Callable[[int], object] = lambda pid: None,
    ) -> None:
        self.url = url
        self.socket_path = socket_path
        self.log = log
        self._is_child = bool(within)
        command = [*within, *command]
        with open(log, "ab") as file:
            self.process = subprocess.Popen(
                command, env={**os.environ, **environment}, stdout=file, stderr=file, cwd=_HERE, start_new_session=True
            )
        try:
            begun(self.process.pid)
            eventually(self.answers, f"{command[0]} answers")
        except AssertionError as error:
            self.stop()
            raise AssertionError(f"{error}:\n{log.read_text()}") from None

    @property
    def pid(self) -> int:
        """The server's, as the host numbers it."""
        if not self._is_child:
            return self.process.pid
        return int(Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()[0])

    def answers(self) -> bool:
        """Whether it accepts connections; no request is sent, for requests are counted."""
        host, _, port = self.url.rpartition("//")[2].rpartition(":")
        address: object = self.socket_path or (host.strip("[]"), int(port))
        family = socket.AF_UNIX if self.socket_path else socket.AF_INET6 if "[" in host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.connect(address)  # type: ignore[arg-type]
        return True

    def get(self, path: str = "/pay", headers: dict[str, str] | None = None) -> httpx.Response:
        with httpx.Client(transport=httpx.HTTPTransport(uds=self.socket_path or None)) as client:
            return client.get(("http://service" if self.socket_path else self.url) + path, headers=headers)

    def stop(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, number)
                self.process.wait(10)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue
            time.sleep(0.1)


def labels(service: str, version: str, env: str) -> dict[str, str]:
    return {
        "OTEL_SERVICE_NAME": service,
        "OTEL_RESOURCE_ATTRIBUTES": f"service.version={version},deployment.environment.name={env}",
    }


def _hooked(agent: AgentProcess, service: str, version: str, env: str, kept: Path | None) -> dict[str, str]:
    environment = {
        **labels(service, version, env),
        "OTEL_TRACES_SAMPLER": "spandial",
        "OTEL_TRACES_EXPORTER": "none",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        "SPANDIAL_RUN_DIR": str(agent.run_dir),
        **import_path(_HERE),
    }
    if kept is not None:
        environment["KEPT_FILE"] = str(kept)
    return environment


@contextmanager
def running(server: Callable[[], Server]) -> Iterator[Server]:
    started = server()
    try:
        yield started
    finally:
        started.stop()


@contextmanager
def uvicorn(
    agent: AgentProcess,
    folder: Path,
    *,
    service: str = "shop",
    version: str = "1",
    env: str = "stable",
    unix: bool = False,
    host: str = "127.0.0.1",
    within: Sequence[str] = (),
) -> Iterator[Server]:
    """A hooked uvicorn, once it is hooked. What it keeps is in the folder's files `kept.*`."""
    port, path = free_port(), str(folder / f"{service}-{env}.sock")
    where = ["--uds", path] if unix else ["--host", host, "--port", str(port)]
    command = [str(_BIN / "opentelemetry-instrument"), str(_BIN / "uvicorn"), *where, "--no-access-log", "service:app"]
    environment = _hooked(agent, service, version, env, folder / "kept")
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    with running(
        lambda: Server(command, environment, folder / f"{service}-{env}.log", url, path if unix else "", within)
    ) as server:
        eventually(lambda: (agent.target(server.pid) or {}).get("kind") == "hooked", "uvicorn is hooked")
        yield server


@contextmanager
def gunicorn(agent: AgentProcess, folder: Path, *, service: str = "shop", workers: int = 4) -> Iterator[Server]:
    """A hooked gunicorn with prefork workers, once master and workers are hooked."""
    port = free_port()
    command = [str(_BIN / "opentelemetry-instrument"), str(_BIN / "gunicorn"), "-w", str(workers), "-k", "asgi"]
    command += ["-b", f"127.0.0.1:{port}", "service:app"]
    environment = _hooked(agent, service, "1", "stable", folder / "kept")
    url = f"http://127.0.0.1:{port}"
    with running(lambda: Server(command, environment, folder / "gunicorn.log", url)) as server:
        agent.hooked(service, workers + 1)
        yield server


class NginxShell:
    """Begins as a shell and goes on as nginx, which overwrites its environment with its title: the agents read the
    shell's meanwhile, and the labels stay.

    Attributes:
        command: of a server.
    """

    def __init__(self, agents: Sequence[AgentProcess], folder: Path, config: Path) -> None:
        self._agents, self._found = agents, folder / "found"
        wait = f"until [ -e {self._found} ]; do sleep 0.1; done"
        self.command = ["sh", "-c", f"{wait}; exec nginx -p {folder} -c {config}"]

    def begun(self, pid: int) -> None:
        eventually(lambda: self._all_know(pid), "the shell is found")
        self._found.touch()

    def find_worker(self, master: int) -> None:
        """nginx answers as soon as it listens, and its worker may be no target yet."""

        def found() -> bool:
            children = Path(f"/proc/{master}/task/{master}/children").read_text().split()
            return bool(children) and all(self._all_know(int(child)) for child in children)

        eventually(found, "the worker is found")

    def _all_know(self, pid: int) -> bool:
        return all(agent.target(pid) is not None for agent in self._agents)


@contextmanager
def nginx(
    agents: Sequence[AgentProcess],
    folder: Path,
    *,
    service: str = "edge",
    unix: bool = False,
    location: str = "return 200 '{}';",
) -> Iterator[Server]:
    """nginx with one worker, on IPv4 and IPv6 or a Unix socket.

    Args:
        location: what it does with every request, in its own words.
    """
    port, path = free_port(), str(folder / "nginx.sock")
    listen = f"listen unix:{path};" if unix else f"listen 127.0.0.1:{port}; listen [::1]:{port};"
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log; "
        "events { worker_connections 1024; } http { access_log off; keepalive_requests 10000000; "
        f"server {{ {listen} location / {{ {location} }} }} }}"
    )
    shell, url = NginxShell(agents, folder, config), f"http://127.0.0.1:{port}"
    named, log = labels(service, "1", "stable"), folder / "nginx.log"
    with running(lambda: Server(shell.command, named, log, url, path if unix else "", begun=shell.begun)) as server:
        shell.find_worker(server.pid)
        yield server


@contextmanager
def node(
    folder: Path,
    *,
    service: str = "front",
    tenant: str = "",
    unix: bool = False,
    host: str = "127.0.0.1",
    within: Sequence[str] = (),
) -> Iterator[Server]:
    """Node on all addresses, asked at `host`, or on a Unix socket."""
    port, path = free_port(), str(folder / "node.sock")
    environment = {**labels(service, "1", "stable"), "PORT": path if unix else str(port)}
    if tenant:
        environment["OTEL_RESOURCE_ATTRIBUTES"] += f",tenant={tenant}"
    command = ["node", str(_DEMO / "service.js")]
    url = f"http://{host}:{port}"
    with running(
        lambda: Server(command, environment, folder / "node.log", url, path if unix else "", within)
    ) as server:
        yield server


def h2load(
    server: Server,
    requests: int,
    *headers: str,
    url: str = "",
    staggered: bool = False,
    within: Sequence[str] = (),
) -> None:
    """Exactly so many requests over HTTP/1.1 with keep-alive, on 16 connections, which come four a second where
    staggered. Raises AssertionError if one fails."""
    command = [*within, "h2load", "--h1", "-n", str(requests), "-c", "16", *(["-r", "4"] if staggered else [])]
    for header in headers:
        command += ["-H", header]
    if server.socket_path:
        command += ["-B", f"unix:{server.socket_path}", "http://service/pay"]
    else:
        # h2load writes an IPv6 address without its brackets, which nginx answers with 400.
        command += ["-H", ":authority: service", (url or server.url) + "/pay"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1000, check=True).stdout
    match = re.search(r"(\d+) succeeded", done)
    assert match is not None, done
    assert int(match[1]) == requests, done
