"""Who has opened a connection."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from spandial_agent.processes import asker as asker_module
from spandial_agent.processes.asker import asker


@pytest.fixture(params=["127.0.0.1", "::1"])
def listener(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    with socket.create_server((request.param, 0), family=family) as server:
        yield server


_CONNECT = "import socket, sys; s = socket.create_connection((sys.argv[1], int(sys.argv[2]))); sys.stdin.read()"


@pytest.fixture
def client(listener: socket.socket) -> Iterator[subprocess.Popen[bytes]]:
    address, port = listener.getsockname()[:2]
    command = [sys.executable, "-c", _CONNECT, address, str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        yield process
        process.communicate()


def test_it_is_the_process_that_has_the_other_end(listener: socket.socket, client: subprocess.Popen[bytes]) -> None:
    port = listener.getsockname()[1]
    accepted, (address, from_port, *_) = listener.accept()
    with accepted:
        assert asker([os.getpid(), client.pid], address, from_port, port) == client.pid
        assert asker([os.getpid()], address, from_port, port) is None
        assert asker([client.pid], address, from_port, port + 1) is None
        at = listener.getsockname()[0]
        assert asker([os.getpid(), client.pid], address, from_port, port, at) == client.pid
        assert asker([os.getpid()], address, from_port, port, at) is None


def test_a_connection_that_the_kernel_knows_is_found_without_a_list_of_all(
    listener: socket.socket, client: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asker_module, "whose_connection", None)
    at, port = listener.getsockname()[:2]
    accepted, (address, from_port, *_) = listener.accept()
    with accepted:
        assert asker([os.getpid(), client.pid], address, from_port, port, at) == client.pid


def test_of_a_connection_that_has_been_closed_nothing_is_read(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asker_module, "whose_connection", None)
    monkeypatch.setattr(asker_module, "holder", None)
    at, port = listener.getsockname()[:2]
    with socket.create_connection((at, port)) as client:
        from_port = client.getsockname()[1]
        accepted, (address, *_) = listener.accept()
    with accepted:
        assert asker([os.getpid()], address, from_port, port, at, here=True) is None


def test_of_a_listener_for_both_families_it_is_the_address_that_counts() -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            accepted, (address, from_port, *_) = server.accept()
            accepted.close()
            assert address == "::ffff:127.0.0.1"
            assert asker([os.getpid()], address, from_port, port) == os.getpid()


def test_a_name_is_nobodys() -> None:
    assert asker([os.getpid()], "testclient", 1, 2) is None
