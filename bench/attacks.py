"""What an unprivileged user of a node can do to its agent: one function each, whose docstring says it in a sentence.

As a program it is started as root, becomes a user without groups and capabilities, and attacks until it is ended; it
prints a line once the attack stands. Only the standard library: after the drop, nothing else may be readable.
"""

from __future__ import annotations

import array
import ctypes
import http.client
import json
import mmap
import os
import resource
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

__all__ = ["ATTACKS", "SERVICE", "TWO", "USER"]

USER = 64321  # nobody's number
SERVICE = "attack"  # of attackers who are targets of the agent
TWO = "attacked-by-polls"  # a service with two envs

_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38
_VARIABLES = 250_000  # with their pointers 4 MB; execve(2) takes 6 MB at most


class _Node(NamedTuple):
    """What is attacked.

    Attributes:
        run_dir: of the agent.
        port: of the agent, over TCP.
        hello: what a hook says to register.
        count: of libraries.
    """

    run_dir: str
    port: int
    hello: bytes
    count: int

    def app(self) -> socket.socket:
        """A connection to the applications' socket."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        connection.settimeout(2)
        connection.connect(f"{self.run_dir}/app.sock")
        return connection

    def tcp(self, sent: bytes = b"") -> socket.socket:
        """A connection over TCP on which this was sent, or as much of it as the agent takes."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=2)
        with suppress(OSError):
            connection.sendall(sent)
        return connection

    def ask(self, path: str, pause_s: float = 0.0) -> None:
        """Ask again and again."""
        while True:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                while True:
                    connection.request("GET", path)
                    connection.getresponse().read()
                    time.sleep(pause_s)
            except (OSError, http.client.HTTPException):
                time.sleep(pause_s)


def _go() -> None:
    print("go", flush=True)


def _wait() -> None:
    _go()
    while True:
        signal.pause()


def _in_background(work: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=work, args=arguments, daemon=True).start()


def _hold(count: int, opened: Callable[[int], socket.socket]) -> None:
    """Open so many connections, and in place of those that the agent ends others, a hundred a second."""
    poll, held = select.poll(), dict[int, socket.socket]()
    first = True
    for number in range(1 << 40):
        with suppress(OSError):
            connection = opened(number)
            held[connection.fileno()] = connection
            poll.register(connection, select.POLLRDHUP)
        if first and number >= count:
            first = False
            _go()
        while True:
            for ended, _ in poll.poll(1000 if len(held) >= count else 0):
                poll.unregister(ended)
                held.pop(ended).close()
            if len(held) < count:
                break
        if not first:
            time.sleep(0.01)


def _spawner() -> Callable[..., int]:
    """posix_spawnp(3) with a large environment, which is made once; returns the pid."""
    resource.setrlimit(resource.RLIMIT_STACK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    libc = ctypes.CDLL(None)
    environment = (ctypes.c_char_p * (_VARIABLES + 1))(*[b"OTEL_A="] * _VARIABLES, None)

    def spawn(*words: bytes) -> int:
        pid, arguments = ctypes.c_int(), (ctypes.c_char_p * (len(words) + 1))(*words, None)
        error = libc.posix_spawnp(ctypes.byref(pid), words[0], None, None, arguments, environment)
        if error:
            raise OSError(error, os.strerror(error))
        return pid.value

    return spawn


def watchers(node: _Node) -> None:
    """2,000 streams of kept entries, none of them read, each with globs of its own; 300 requests a second are kept."""
    served = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(served.getsockname())
    server, _ = served.accept()

    def requests() -> None:
        while True:
            client.sendall(b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n")
            server.recv(4096)
            server.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            client.recv(4096)
            time.sleep(0.003)

    _in_background(requests)
    asked = b"GET /entries?service=*%d*&env=*a*a* HTTP/1.1\r\nHost: localhost\r\n\r\n"
    _hold(2000, lambda number: node.tcp(asked % number))


def bodies(node: _Node) -> None:
    """300 connections without a token send all but the last byte of a body of 1 MiB, and wait."""
    head = b"POST /sampling/batch HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    sent = head + b"Content-Length: %d\r\n\r\n[" % (1 << 20) + b" " * ((1 << 20) - 2)
    _hold(300, lambda number: node.tcp(sent))


def idle(node: _Node) -> None:
    """9,000 connections over TCP, half of them with half a head of 30 kB."""
    half = b"GET / HTTP/1.1\r\nX: " + b"a" * 30000
    _hold(9000, lambda number: node.tcp(half if number % 2 else b""))


def silent(node: _Node) -> None:
    """3,000 connections to the applications' socket that say nothing."""
    _hold(3000, lambda number: node.app())


def execs(node: _Node) -> None:
    """A process with 250,000 variables in its environment calls exec again and again."""
    spawn = _spawner()
    _go()
    while True:
        os.waitpid(spawn(b"env", b"env", b"env", b"sleep", b"0.02"), 0)


def environments(node: _Node) -> None:
    """200 idle processes, each with 250,000 variables in its environment."""
    spawn = _spawner()
    for _ in range(200):
        spawn(b"sleep", b"600")
    _wait()


def messages(node: _Node) -> None:
    """Eight registered connections send messages of 100 kB without end."""
    registered = [node.app() for _ in range(8)]
    for connection in registered:
        connection.send(node.hello)
        connection.recv(65536)
        connection.setblocking(False)
    _go()
    while True:
        for connection in registered:
            with suppress(OSError):
                connection.send(b"x" * 100_000)


def garbage(node: _Node) -> None:
    """The applications' socket gets JSON that is none, or deep, or long, and 200 descriptors with each message."""
    named = json.dumps(SERVICE).encode()
    said = [b"", b"{", b"null", b"[" * 60_000, b"\0" * 100, b"{" * (1 << 18), b'{"abi":NaN}', node.hello[:-5]]
    said += [b'{"abi":2,"default":' + b"9" * 5000 + b"}", node.hello.replace(named, b'["x"]')]
    said += [node.hello.replace(named, b'"' + b"x" * 100_000 + b'"'), node.hello.replace(named, rb'"\ud800\u001b]0;x"')]
    descriptors = array.array("i", [os.open("/dev/null", os.O_RDONLY) for _ in range(200)])
    _go()
    while True:
        for text in said:
            with suppress(OSError), node.app() as connection:
                connection.send(text)
                connection.sendmsg([node.hello], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
        time.sleep(0.01)


def nonsense(node: _Node) -> None:
    """One process connects, is refused for what it says, and begins anew, without end."""
    _go()
    while True:
        with suppress(OSError), node.app() as connection:
            connection.send(b'{"abi":"' + b"x" * 100 + b'"}')
            connection.recv(1000)


def registrations(node: _Node) -> None:
    """4,200 processes of one user register."""
    for number in range(4200):
        if os.fork() == 0:
            _register_once(node, number)
    _wait()


def _register_once(node: _Node, number: int) -> None:
    while True:
        with suppress(OSError), node.app() as connection:
            connection.settimeout(None)
            connection.send(node.hello.replace(b'"attack"', b'"attack%d"' % number))
            if connection.recv(600):
                while True:
                    signal.pause()
        time.sleep(0.1)


def libraries(node: _Node) -> None:
    """One process maps 520 copies of a library that has SSL_read, SSL_write and three more of OpenSSL's functions."""
    names = "SSL_read", "SSL_write", "SSL_read_ex", "SSL_write_ex", "SSL_free"
    source = "".join(f"int {name}(void) {{ return 1; }}" for name in names)
    gcc = ["gcc", "-shared", "-fPIC", "-x", "c", "-o", "libssl.so", "-"]
    subprocess.run(gcc, input=source.encode(), check=True)
    mapped = []
    for number in range(node.count):
        shutil.copy("libssl.so", f"libssl{number}.so")
        with open(f"libssl{number}.so", "rb") as file:
            mapped.append(mmap.mmap(file.fileno(), 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC))
    _wait()


def readers(node: _Node) -> None:
    """Four clients ask without pause for /stats, /metrics, /targets and /sampling."""
    for path in ("/stats", "/metrics", "/targets", "/sampling"):
        _in_background(node.ask, path)
    _wait()


def pollers(node: _Node) -> None:
    """200 clients ask each 100 ms for the rate of a service that two processes with different envs have."""
    for env in ("gray", "stable"):
        labels = {"OTEL_SERVICE_NAME": TWO, "OTEL_RESOURCE_ATTRIBUTES": f"deployment.environment.name={env}"}
        subprocess.Popen(["sleep", "600"], env=labels)
    for _ in range(200):
        _in_background(node.ask, f"/sampling?service={TWO}", 0.1)
    _wait()


def reservoirs(node: _Node) -> None:
    """Requests for X-Ray's targets name 3,600 clients each, others each time, under 300 rules."""
    counts = {"Timestamp": 1, "RequestCount": 1, "SampledCount": 0, "BorrowCount": 0}
    _go()
    for number in range(1 << 40):
        clients = [f"{'x' * 50}{number}-{client}" for client in range(12)]
        named = [
            {"RuleName": f"service=s{rule}", "ClientID": name, **counts} for rule in range(300) for name in clients
        ]
        with suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", node.port, timeout=5)
            connection.request("POST", "/SamplingTargets", json.dumps({"SamplingStatisticsDocuments": named}))
            connection.getresponse().read()
            connection.close()


def headers(node: _Node) -> None:
    """A watched process talks HTTP/2 to itself on 512 connections, with tables of headers as large as may be."""

    def frame(kind: int, flags: int, stream: int, said: bytes) -> bytes:
        return struct.pack(">I", len(said))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + said

    watcher = node.tcp(b"GET /entries HTTP/1.1\r\nHost: localhost\r\n\r\n")
    watcher.settimeout(None)
    _in_background(lambda: [None for _ in iter(lambda: watcher.recv(65536), b"")] and None)
    served, pairs = socket.create_server(("127.0.0.1", 0), backlog=600), []
    for _ in range(512):
        client = socket.create_connection(served.getsockname())
        pairs.append((client, served.accept()[0]))
        client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b""))
        pairs[-1][1].recv(65536)
    _go()
    for number in range(1 << 30):
        for client, server in pairs:
            grown = b"\x3f\xe1\xff\x03" if number == 0 else b""  # 64 KiB; then 330 empty fields a request
            client.sendall(frame(1, 5, 2 * number + 1, grown + b"\x82\x86\x84" + b"\x40\x00\x00" * 330))
            server.recv(65536)
        time.sleep(0.3)


_OF_TARGETS = (watchers, libraries, headers)
_OF_OTHERS = (bodies, idle, silent, execs, environments, messages, garbage, nonsense, registrations)
_OF_CLIENTS = (readers, pollers, reservoirs)

# By name; whether the attacker's environment names a service, so that the agent sees what it does.
ATTACKS = {attack.__name__: (attack, attack in _OF_TARGETS) for attack in (*_OF_TARGETS, *_OF_OTHERS, *_OF_CLIENTS)}


def _become(user: int) -> None:
    for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC):
        _, highest = resource.getrlimit(limit)
        resource.setrlimit(limit, (highest, highest))
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)  # as a program that this user has started


if __name__ == "__main__":
    _become(USER)
    ATTACKS[sys.argv[1]][0](_Node(sys.argv[2], int(sys.argv[3]), sys.argv[4].encode(), int(sys.argv[5])))
