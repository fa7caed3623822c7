"""Servers that speak TLS, without the hook: uvicorn by Python's own library, nginx and Node by theirs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.agent_process import AgentProcess
from tests.certificates import self_signed
from tests.e2e.services import NginxShell, Server, free_port, labels, running

__all__ = ["EDGE", "FRONT", "SHOP", "tls_nginx", "tls_node", "tls_uvicorn"]

# Nobody else's on this host: an agent finds whoever has the name.
SHOP, EDGE, FRONT = (f"{name}-{os.getpid()}" for name in ("shop", "edge", "front"))


@contextmanager
def tls_uvicorn(folder: Path, **environment: str) -> Iterator[Server]:
    port, made = free_port(), self_signed(folder)
    command = [str(Path(sys.executable).parent / "uvicorn"), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--ssl-certfile", str(made.certificate), "--ssl-keyfile", str(made.key)]
    command += ["--no-access-log", "service:app"]
    url = f"https://127.0.0.1:{port}"
    environment = {**labels(SHOP, "1", "stable"), **environment}
    with running(lambda: Server(command, environment, folder / "uvicorn.log", url)) as server:
        yield server


@contextmanager
def tls_nginx(agents: Sequence[AgentProcess], folder: Path, http2: bool = False) -> Iterator[Server]:
    port, made = free_port(), self_signed(folder)
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log; "
        "events { worker_connections 1024; } http { access_log off; keepalive_requests 10000000; "
        f"server {{ listen 127.0.0.1:{port} ssl{' http2' if http2 else ''}; "
        f"ssl_certificate {made.certificate}; ssl_certificate_key {made.key}; "
        "location / { return 200 '{}'; } } }"
    )
    shell, url = NginxShell(agents, folder, config), f"https://127.0.0.1:{port}"
    named, log = labels(EDGE, "1", "stable"), folder / "nginx.log"
    with running(lambda: Server(shell.command, named, log, url, begun=shell.begun)) as server:
        shell.find_worker(server.pid)
        yield server


@contextmanager
def tls_node(folder: Path) -> Iterator[Server]:
    port, made = free_port(), self_signed(folder)
    program = folder / "server.js"
    program.write_text(
        "const https = require('https'), fs = require('fs');"
        f"const options = {{ cert: fs.readFileSync('{made.certificate}'), key: fs.readFileSync('{made.key}') }};"
        "https.createServer(options, (request, response) => {"
        "response.setHeader('content-length', '2'); response.end('{}');"
        f"}}).listen({port}, '127.0.0.1');"
    )
    url = f"https://127.0.0.1:{port}"
    command = ["node", str(program)]
    with running(lambda: Server(command, labels(FRONT, "1", "stable"), folder / "node.log", url)) as server:
        yield server
