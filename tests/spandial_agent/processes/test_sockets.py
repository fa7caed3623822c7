"""Which ports processes listen on, and which connections they have open."""

from __future__ import annotations

import ipaddress
import itertools
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pyroute2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spandial_agent.processes import sockets as listening_module
from spandial_agent.processes.proc import socket_inodes
from spandial_agent.processes.sockets import (
    Endpoint,
    Listening,
    TcpSocket,
    began_to_listen,
    listening_ports,
    open_connections,
    parse_proc_net_tcp,
    whose_connection,
)
from tests.agent_process import eventually

ESTABLISHED, CLOSE_WAIT, LISTEN = 1, 8, 10

# Binds and listens, says on which port, and does so again for every line that it reads.
SERVER = """
import socket, sys
kept = []
while True:
    kept.append(socket.create_server(("", 0), family=socket.{family}))
    print(kept[-1].getsockname()[1], flush=True)
    if not sys.stdin.readline():
        break
"""

_endpoints = st.builds(Endpoint, st.ip_addresses().map(str), st.integers(0, 65535))
_sockets = st.builds(TcpSocket, st.integers(1, 12), _endpoints, _endpoints, st.integers(0, 1 << 32))
_byteorders: st.SearchStrategy[Literal["little", "big"]] = st.sampled_from(["little", "big"])


class NoDiagnosis:
    """A kernel that answers no socket diagnosis."""

    def __init__(self) -> None:
        raise PermissionError(1, "Operation not permitted")


def line(shown: TcpSocket, byteorder: Literal["little", "big"]) -> bytes:
    """As tcp4_seq_show and tcp6_seq_show of the kernel print it."""

    def end(endpoint: Endpoint) -> str:
        packed = ipaddress.ip_address(endpoint.address).packed
        words = [int.from_bytes(packed[at : at + 4], byteorder) for at in range(0, len(packed), 4)]
        return "".join(f"{word:08X}" for word in words) + f":{endpoint.port:04X}"

    return (
        f"   7: {end(shown.local)} {end(shown.remote)} {shown.state:02X} 00000000:00000000 00:00000000 00000000"
        f"  1000        0 {shown.inode} 1 0000000000000000 100 0 0 10 0\n"
    ).encode()


@contextmanager
def server(*before: str, family: str = "AF_INET") -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that listens, and its port."""
    child = subprocess.Popen(
        [*before, sys.executable, "-S", "-c", SERVER.format(family=family)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield child, port_of(child)
    finally:
        child.kill()
        child.communicate()


def port_of(child: subprocess.Popen[str]) -> int:
    assert child.stdout is not None
    return int(child.stdout.readline())


def another_port(child: subprocess.Popen[str]) -> int:
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()
    return port_of(child)


@pytest.fixture(params=["diagnosis", "proc"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to ask, in the agent's own network namespace."""
    if request.param == "proc":
        monkeypatch.setattr(pyroute2, "DiagSocket", NoDiagnosis)
    else:
        monkeypatch.setattr(listening_module, "_shown", lambda pid, *names: iter(()))
    return str(request.param)


@given(st.lists(_sockets), _byteorders)
def test_what_the_kernel_shows_is_read_whatever_the_hosts_byte_order(
    shown: list[TcpSocket], byteorder: Literal["little", "big"]
) -> None:
    mapped = [*shown, *(found._replace(local=Endpoint("::ffff:" + "10.1.2.3", 80)) for found in shown)]
    expected = [*shown, *(found._replace(local=Endpoint("10.1.2.3", 80)) for found in shown)]
    read = list(parse_proc_net_tcp([line(found, byteorder) for found in mapped], byteorder))
    assert [plain(found) for found in read] == [plain(found) for found in expected]


def plain(found: TcpSocket) -> TcpSocket:
    """IPv4-mapped addresses come among the generated ones too."""
    ends = []
    for end in (found.local, found.remote):
        address = ipaddress.ip_address(end.address)
        ends.append(Endpoint(str(getattr(address, "ipv4_mapped", None) or address), end.port))
    return found._replace(local=ends[0], remote=ends[1])


@given(st.lists(st.binary(max_size=200)), _sockets, _byteorders)
def test_lines_that_are_none_are_left_out(
    noise: list[bytes], shown: TcpSocket, byteorder: Literal["little", "big"]
) -> None:
    read = list(parse_proc_net_tcp([*noise, line(shown, byteorder), *noise], byteorder))
    assert plain(shown) in [plain(found) for found in read]


@given(_sockets, st.integers(0, 149), st.binary(max_size=3))
def test_no_change_of_a_line_makes_the_parser_raise(shown: TcpSocket, at: int, change: bytes) -> None:
    text = line(shown, "little")
    for found in parse_proc_net_tcp([text[:at] + change + text[at + 1 :], text[:at]]):
        ipaddress.ip_address(found.local.address)
        assert 0 <= found.local.port <= 65535


def test_the_heading_is_no_socket() -> None:
    heading = b"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    assert list(parse_proc_net_tcp([heading])) == []


@pytest.mark.parametrize(("family", "loopback"), [("AF_INET", "127.0.0.1"), ("AF_INET6", "::1")])
def test_a_process_listens_on_the_ports_that_it_has_bound(way: str, family: str, loopback: str) -> None:
    with server(family=family) as (child, port):
        assert listening_ports(child.pid) == {port}
        other = another_port(child)
        assert listening_ports(child.pid) == {port, other}
        with socket.create_connection((loopback, port)):
            assert listening_ports(child.pid) == {port, other}
            assert port not in listening_ports(os.getpid())
    assert listening_ports(child.pid) == frozenset()


def test_a_web_server_listens(way: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        try:
            assert eventually(lambda: listening_ports(child.pid), "it listens") == {port}
        finally:
            child.kill()


def test_a_forked_child_listens_where_its_parent_does(way: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        child = os.fork()
        if not child:
            signal.pause()
            os._exit(0)
        try:
            assert listener.getsockname()[1] in listening_ports(child)
        finally:
            os.kill(child, 9)
            os.waitpid(child, 0)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_connections_are_those_that_were_made_before_anybody_looked(way: str, address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    mapped = address.startswith("::ffff:")
    with socket.create_server((address, 0), family=family, dualstack_ipv6=mapped) as listener:
        remote = Endpoint(address.removeprefix("::ffff:"), listener.getsockname()[1])
        with socket.socket(family) as client:
            client.connect(listener.getsockname()[:2])
            accepted, _ = listener.accept()
            local = remote._replace(port=client.getsockname()[1])
            expected = [
                TcpSocket(ESTABLISHED, local, remote, os.fstat(client.fileno()).st_ino),
                TcpSocket(ESTABLISHED, remote, local, os.fstat(accepted.fileno()).st_ino),
            ]
            assert sorted(of_port(remote.port)) == sorted(expected)
            client.shutdown(socket.SHUT_WR)
            waiting = expected[1]._replace(state=CLOSE_WAIT)
            eventually(lambda: waiting in of_port(remote.port), "the server's end waits to be closed")
            accepted.close()
        assert of_port(remote.port) == []


def of_port(port: int) -> list[TcpSocket]:
    return [found for found in open_connections(os.getpid()) if port in (found.local.port, found.remote.port)]


def test_a_process_that_is_gone_has_neither_ports_nor_connections() -> None:
    assert listening_ports(1 << 30) == frozenset()
    assert open_connections(1 << 30) == []
    assert socket_inodes(1 << 30) == set()


def test_who_begins_to_listen_on_a_wanted_port_is_found_once(way: str) -> None:
    with server() as (child, port), server() as (other, _):
        ports = {port}
        waiting: dict[int, frozenset[int]] = {child.pid: frozenset(), other.pid: frozenset()}

        def look() -> dict[int, Listening | None]:
            found = began_to_listen(waiting, ports.__contains__)
            waiting.update({pid: listening.looked_for for pid, listening in found.items() if listening})
            return found

        found = look()
        assert {pid: listening.ports for pid, listening in found.items() if listening} == {
            child.pid: {port},
            other.pid: frozenset(),
        }
        assert look() == {}
        ports.add(another_port(other))
        found = look()
        assert found[other.pid] is not None
        assert found[other.pid].ports == ports - {port}
        assert look() == {}


def test_nobody_is_looked_at_where_no_listener_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[int] = []
    monkeypatch.setattr(listening_module, "socket_inodes", lambda pid: looked_at.append(pid) or set())
    with server() as (child, _):
        assert began_to_listen({child.pid: frozenset()}, lambda port: False) == {}
    assert looked_at == []


def test_who_is_gone_waits_no_more() -> None:
    assert began_to_listen({1 << 30: frozenset()}, lambda port: True) == {1 << 30: None}


def test_where_diagnosis_answers_nothing_proc_does(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent:
        def __enter__(self) -> Silent:
            return self

        def __exit__(self, *args: object) -> None: ...

        def bind(self) -> None: ...

        def get_sock_stats(self, **asked: Any) -> tuple[()]:
            return ()

    monkeypatch.setattr(pyroute2, "DiagSocket", Silent)
    with server() as (child, port):
        assert listening_ports(child.pid) == {port}


def test_a_host_without_ipv6_has_ports_all_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with server() as (child, port):
        inode = next(iter(socket_inodes(child.pid)))
        net = tmp_path / str(child.pid) / "net"
        net.mkdir(parents=True)
        (net / "tcp").write_bytes(
            line(TcpSocket(LISTEN, Endpoint("0.0.0.0", port), Endpoint("0.0.0.0", 0), inode), sys.byteorder)
        )
        monkeypatch.setattr(listening_module, "_PROC", tmp_path)
        monkeypatch.setattr(listening_module, "_namespace", lambda pid: 2 if pid == "self" else 1)
        assert listening_ports(child.pid) == {port}


def test_of_a_namespace_with_many_sockets_so_many_are_read_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    local, port, read = Endpoint("10.0.0.1", 4711), 5778, Counter[int]()
    own = os.getpid()

    def around(pid: int) -> Iterator[TcpSocket]:
        for number in itertools.count():
            read[pid] += 1
            yield TcpSocket(ESTABLISHED, local, Endpoint("10.0.0.2", port if (pid, number) == (own, 9) else 1), 7)

    monkeypatch.setattr(listening_module, "_OF_ALL", 500)
    monkeypatch.setattr(listening_module, "_OF_A_NAMESPACE", 100)
    monkeypatch.setattr(listening_module, "_namespace", lambda pid: pid)
    monkeypatch.setattr(listening_module, "_sockets_around", around)
    monkeypatch.setattr(listening_module, "holder", lambda pids, inode: pids[0])
    nobodys = [(1 << 30) + number for number in range(10)]  # a user's who is none here
    assert whose_connection([*nobodys, own], local, port) == own
    assert read == {nobodys[0]: 100, nobodys[1]: 100, nobodys[2]: 50, own: 10}


@pytest.mark.kernel
@pytest.mark.needs("unshare")
@pytest.mark.parametrize("family", ["AF_INET", "AF_INET6"])
def test_a_process_in_another_network_namespace_is_seen_as_well(family: str) -> None:
    with server("unshare", "--net", family=family) as (child, port), server() as (outside, own_port):
        assert os.stat(f"/proc/{child.pid}/ns/net").st_ino != os.stat("/proc/self/ns/net").st_ino
        assert listening_ports(child.pid) == {port}
        found = began_to_listen({child.pid: (), outside.pid: ()}, lambda port: True)
        assert {pid: listening.ports for pid, listening in found.items() if listening} == {
            child.pid: {port},
            outside.pid: {own_port},
        }


@pytest.mark.kernel
@pytest.mark.needs("unshare", "ip")
def test_connections_in_another_network_namespace_are_seen_as_well() -> None:
    connect = """
import socket
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
print(listener.getsockname()[1], flush=True)
input()
"""
    command = [
        "unshare",
        "--net",
        "sh",
        "-c",
        'ip link set lo up; exec "$@"',
        "sh",
        sys.executable,
        "-S",
        "-c",
        connect,
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        port = port_of(child)
        # The other end waits in the listener's queue: no process has it open yet.
        [found] = open_connections(child.pid)
        assert (found.state, found.remote) == (ESTABLISHED, Endpoint("127.0.0.1", port))
        child.communicate("\n")
