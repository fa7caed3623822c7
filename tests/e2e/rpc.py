"""A gRPC server and an HTTP/2 server as processes, and h2load on them. Each server says what it served.

The fixtures `grpc_server` and `h2c_server` (`programs/fixtures.py`) are one process a session.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from tests.e2e.programs.process import Done, Program, Tool, executable
from tests.e2e.services import Server

__all__ = ["RpcServer", "grpc_echo", "h2load", "node_h2c"]

_PROGRAMS = Path(__file__).parent / "programs"
_GRPC_MESSAGE = b"\0\0\0\0\7message"  # not compressed, 7 bytes long


class RpcServer(Program):
    """A server on TCP, or on the Unix socket that the last word of its command names.

    Attributes:
        address: as gRPC has it, `127.0.0.1:PORT` or `unix:PATH`.
        url: the same for h2load.
        socket_path: the Unix socket's, or "".
    """

    def __init__(self, command: list[str], socket_path: str = "", environment: dict[str, str] | None = None) -> None:
        super().__init__(command, environment)
        self.socket_path = socket_path
        self.address = f"unix:{socket_path}" if socket_path else f"127.0.0.1:{self.ready['port']}"
        self.url = "http://server" if socket_path else f"http://{self.address}"
        self._before = Done({}, {})

    def __enter__(self) -> RpcServer:
        return self

    def served(self) -> Done:
        """What came since the last call: operations by path, errors by status."""
        now = Done(**self.ask({}))
        done, self._before = now.since(self._before), now
        return done


def grpc_echo(socket_path: str = "", environment: dict[str, str] | None = None, threads: int = 64) -> RpcServer:
    """`programs/grpc_server.py`, a context manager."""
    where = [f"unix:{socket_path}"] if socket_path else []
    command = [sys.executable, "-m", "tests.e2e.programs.grpc_server", str(threads), *where]
    return RpcServer(command, socket_path, environment)


def node_h2c(socket_path: str = "", environment: dict[str, str] | None = None) -> RpcServer:
    """`programs/h2c_server.js`, a context manager."""
    command = [executable("node"), str(_PROGRAMS / "h2c_server.js"), *([socket_path] if socket_path else [])]
    return RpcServer(command, socket_path, environment)


def h2load(
    server: RpcServer | Server,
    requests: int,
    *headers: str,
    path: str = "/pay",
    connections: int = 1,
    streams: int = 1,
    http1: bool = False,
    message_in: Path | None = None,
    environment: dict[str, str] | None = None,
) -> Tool:
    """So many requests without TLS, at once as many as `connections * streams`.

    Args:
        headers: `name: value`.
        path: `/status/503` is answered with that status by Node.
        http1: over HTTP/1.1, and not HTTP/2.
        message_in: a folder; with one, each request is a gRPC call, and its message is written there for h2load.
    """
    command = [executable("h2load"), "-n", str(requests), "-c", str(connections), "-m", str(streams)]
    command += ["--h1"] if http1 else []
    for header in headers:
        command += ["-H", header]
    if message_in is not None:
        (message_in / "message").write_bytes(_GRPC_MESSAGE)
        command += ["-d", str(message_in / "message"), "-H", "content-type: application/grpc", "-H", "te: trailers"]
    if server.socket_path:
        command += ["-B", f"unix:{server.socket_path}"]
    refused = re.fullmatch(r"/status/([45]\d\d)", path)

    def check(output: str) -> None:
        answered = re.search(r"(\d+) total, \d+ started, (\d+) done, (\d+) succeeded", output)
        assert answered is not None, output
        assert [int(number) for number in answered.groups()] == [requests, requests, 0 if refused else requests], output

    done = Done({path: requests}, {refused[1]: requests} if refused else {})
    return Tool([*command, server.url + path], check, done, environment)
