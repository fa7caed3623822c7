"""Libraries of OpenSSL wherever they are, and calls within calls."""

from __future__ import annotations

import ctypes
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from spandial.abi import EntryKind
from spandial_agent.capture import openssl
from spandial_agent.capture.mappings import Seen, look_at
from spandial_agent.capture.openssl import TlsCapture
from spandial_agent.processes.held import HeldProcess
from tests.certificates import Certificate, self_signed
from tests.in_kernel.conftest import Attached, Watched
from tests.in_kernel.test_capture import REQUEST

pytestmark = [pytest.mark.kernel, pytest.mark.needs("openssl")]

# A client and a server over memory: as many requests as it is asked for, in a process of its own.
TALK = """
import ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
a, b = ssl.MemoryBIO(), ssl.MemoryBIO()
server = context.wrap_bio(a, b, server_side=True)
client = ssl._create_unverified_context().wrap_bio(b, a)
for _ in range(3):
    for side in (client, server):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            pass
print("ready", flush=True)
for line in sys.stdin:
    for _ in range(int(line)):
        client.write(b"GET /pay HTTP/1.1\\r\\nhost: x\\r\\n\\r\\n")
        server.read(65536)
    print("done", flush=True)
"""


@pytest.fixture(scope="module")
def tls(attached: Attached) -> Iterator[TlsCapture]:
    tls = attached[1].tls()
    yield tls
    tls.close()


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    return self_signed(tmp_path)


def looked_at(pid: int) -> Seen:
    with HeldProcess(pid) as process:
        return look_at(process)


def attach(tls: TlsCapture, seen: Seen) -> list[int]:
    return [link for library in seen.libraries for link in tls.attach(library.path, library.offsets)]


@pytest.mark.needs("unshare")
def test_a_library_in_another_mount_namespace(
    watched: Watched, tls: TlsCapture, certificate: Certificate, tmp_path: Path
) -> None:
    """Where it is, the agent sees nothing; and the file has been deleted."""
    with looked_at(os.getpid()) as seen:
        ours = next(library for library in seen.libraries if library.name.startswith("libssl.so"))
        libssl = os.readlink(ours.path)

    folder = tmp_path / "lib"
    folder.mkdir()
    script = f'mount -t tmpfs none {folder} && cp {libssl} {folder} && LD_LIBRARY_PATH={folder} exec "$@"'
    with talking(certificate, "unshare", "-m", "sh", "-c", script, "sh") as process:
        os.unlink(f"/proc/{process.pid}/root{folder}/{os.path.basename(libssl)}")
        assert not list(folder.iterdir())
        with looked_at(process.pid) as seen:
            assert [library.name for library in seen.libraries] == [os.path.basename(libssl)]
            assert seen.libraries[0].identity != ours.identity
            watched.capture.add_target(process.pid, watched.row)
            links = attach(tls, seen)
        talk(process, 50)
        watched.capture.remove_target(process.pid)
        tls.detach(links)
    assert watched.counts().seen[EntryKind.HTTP] == watched.counts().reverse[EntryKind.HTTP] == 50


@contextmanager
def talking(certificate: Certificate, *before: str) -> Iterator[subprocess.Popen[str]]:
    command = [*before, sys.executable, "-c", TALK, str(certificate.certificate), str(certificate.key)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        assert process.stdin is not None
        process.stdin.close()


def talk(process: subprocess.Popen[str], requests: int) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{requests}\n")
    process.stdin.flush()
    assert process.stdout.readline() == "done\n"


class Nested:
    """A client that speaks TLS through TLS, by a BIO whose functions call SSL_read and SSL_write of the outer one."""

    def __init__(self, descriptor: int) -> None:
        ssl_, crypto = ctypes.CDLL("libssl.so.3"), ctypes.CDLL("libcrypto.so.3")
        for name in ("TLS_client_method", "SSL_CTX_new", "SSL_new"):
            getattr(ssl_, name).restype = ctypes.c_void_p
        for name in ("BIO_meth_new", "BIO_new"):
            getattr(crypto, name).restype = ctypes.c_void_p
        self._ssl = ssl_
        context = ctypes.c_void_p(ssl_.SSL_CTX_new(ctypes.c_void_p(ssl_.TLS_client_method())))
        self._outer = ctypes.c_void_p(ssl_.SSL_new(context))
        ssl_.SSL_set_fd(self._outer, descriptor)
        assert ssl_.SSL_connect(self._outer) == 1
        method = ctypes.c_void_p(crypto.BIO_meth_new(0x80 | 0x400, b"outer"))
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)
        control = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_void_p)
        self._keep: list[Any] = [
            kind(lambda _, buffer, length: ssl_.SSL_read(self._outer, ctypes.c_void_p(buffer), length)),
            kind(lambda _, buffer, length: ssl_.SSL_write(self._outer, ctypes.c_void_p(buffer), length)),
            control(lambda _bio, command, _number, _pointer: int(command == 11)),  # BIO_CTRL_FLUSH
        ]
        crypto.BIO_meth_set_read(method, self._keep[0])
        crypto.BIO_meth_set_write(method, self._keep[1])
        crypto.BIO_meth_set_ctrl(method, self._keep[2])
        bio = ctypes.c_void_p(crypto.BIO_new(method))
        crypto.BIO_set_init(bio, 1)
        self._inner = ctypes.c_void_p(ssl_.SSL_new(context))
        ssl_.SSL_set_bio(self._inner, bio, bio)
        assert ssl_.SSL_connect(self._inner) == 1

    def write(self, message: bytes) -> None:
        assert self._ssl.SSL_write(self._inner, message, len(message)) == len(message)

    def read(self, length: int) -> bytes:
        buffer = ctypes.create_string_buffer(length)
        got = self._ssl.SSL_read(self._inner, buffer, length)
        return buffer.raw[:got]


def serve(connection: socket.socket, context: ssl.SSLContext, requests: int) -> None:
    """The other end: answers each request by itself."""
    outer = context.wrap_socket(connection, server_side=True)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    inner = context.wrap_bio(incoming, outgoing, server_side=True)
    shaken = False
    while requests:
        try:
            if not shaken:
                inner.do_handshake()
                shaken = True
            else:
                inner.write(inner.read(65536))
                requests -= 1
        except ssl.SSLWantReadError:
            outer.sendall(outgoing.read())
            incoming.write(outer.recv(65536))
    outer.sendall(outgoing.read())


def test_tls_through_tls_is_seen_once(watched: Watched, tls: TlsCapture, certificate: Certificate) -> None:
    with looked_at(os.getpid()) as seen:
        links = attach(tls, seen)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate, certificate.key)
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=serve, args=(theirs, context, 20))
    thread.start()
    client = Nested(ours.fileno())
    for _ in range(20):
        client.write(REQUEST)
        assert client.read(65536) == REQUEST
    thread.join()
    tls.detach(links)
    # The server sends back what it was sent: each side receives 20 and sends 20.
    assert watched.counts().seen[EntryKind.HTTP] == watched.counts().reverse[EntryKind.HTTP] == 40


def test_a_kernel_without_links_of_many_uprobes_follows_too(
    attached: Attached, watched: Watched, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openssl, "takes_many", lambda program: False)
    tls = attached[1].tls()
    try:
        with looked_at(os.getpid()) as seen:
            attach(tls, seen)
        with talking(certificate) as process:
            watched.capture.add_target(process.pid, watched.row)
            talk(process, 30)
            watched.capture.remove_target(process.pid)
    finally:
        tls.close()
    assert watched.counts().seen[EntryKind.HTTP] == watched.counts().reverse[EntryKind.HTTP] == 30


def test_without_the_capability_libraries_are_found_by_name() -> None:
    drop = ["setpriv", "--bounding-set", "-sys_admin,-checkpoint_restore"]
    program = """
import os, ssl
from spandial_agent.capture.mappings import look_at
from spandial_agent.processes.held import HeldProcess
try:
    print(os.stat("/proc/self/map_files/" + os.listdir("/proc/self/map_files")[0]))
except PermissionError:
    print([library.name for library in look_at(HeldProcess(os.getpid())).libraries])
"""
    said = subprocess.run([*drop, sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "libssl.so" in said
