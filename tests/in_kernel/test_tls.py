"""The clear text of TLS connections is counted and decided once, whatever their sockets carry."""

from __future__ import annotations

import os
import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from spandial import abi
from spandial.abi import EntryKind, Event, Parent, Protocol
from spandial_agent.capture.mappings import look_at
from spandial_agent.processes.held import HeldProcess
from tests.agent_process import eventually
from tests.certificates import Certificate, self_signed
from tests.in_kernel.conftest import Attached, Watched
from tests.in_kernel.remote import RemotePair
from tests.in_kernel.test_capture import REQUEST, RESPONSE, traced
from tests.in_kernel.test_databases import pg_query, resp
from tests.in_kernel.test_http2 import PREFACE, Client
from tests.in_kernel.test_operations import Rules

pytestmark = [pytest.mark.kernel, pytest.mark.needs("openssl")]

STARTUP = b"\0\0\0\x14\0\3\0\0user\0x\0\0\0\0\0\0"


@pytest.fixture(scope="module")
def followed(attached: Attached) -> Iterator[list[int]]:
    """This process's libssl, attached to."""
    tls = attached[1].tls()
    with HeldProcess(os.getpid()) as process, look_at(process) as seen:
        links = [link for library in seen.libraries for link in tls.attach(library.path, library.offsets)]
    assert links
    yield links
    tls.close()


@pytest.fixture(autouse=True)
def libssl(watched: Watched, followed: list[int]) -> None:
    """Every test's process is a target, and its libssl is followed."""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return self_signed(tmp_path_factory.mktemp("tls"))


class Pair:
    """A client and a server in this process, over memory or, by default, over a socket pair."""

    def __init__(self, certificate: Certificate, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> None:
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(certificate.certificate, certificate.key)
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.load_verify_locations(certificate.certificate)
        client.maximum_version = version
        ours, theirs = socket.socketpair()
        accepted: list[ssl.SSLSocket] = []
        thread = threading.Thread(target=lambda: accepted.append(server.wrap_socket(theirs, server_side=True)))
        thread.start()
        self.client = client.wrap_socket(ours, server_hostname="localhost")
        thread.join()
        self.server = accepted[0]

    def send(self, *messages: bytes) -> None:
        for message in messages:
            self.client.sendall(message)
            assert read(self.server, len(message)) == message

    def answer(self, message: bytes) -> None:
        self.server.sendall(message)
        assert read(self.client, len(message)) == message

    def close(self) -> None:
        self.client.close()
        self.server.close()


def read(connection: ssl.SSLSocket, length: int) -> bytes:
    got = b""
    while len(got) < length:
        got += connection.recv(65536)
    return got


@pytest.fixture
def rules(watched: Watched) -> Iterator[Rules]:
    rules = Rules(watched)
    yield rules
    rules.close()


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def pair(request: pytest.FixtureRequest, certificate: Certificate) -> Iterator[Pair]:
    pair = Pair(certificate, request.param)
    yield pair
    pair.close()


def test_every_request_is_counted_once(watched: Watched, pair: Pair) -> None:
    for _ in range(250):
        pair.send(REQUEST)
        pair.answer(RESPONSE)
    counts = watched.counts()
    assert (counts.seen, counts.reverse) == ((0, 250, 0, 0), (0, 250, 0, 0))
    assert watched.capture.losses()["unreadable"] == 0


def test_the_trace_context_decides(watched: Watched, pair: Pair) -> None:
    for sampled in (True, False, True):
        pair.send(traced(sampled))
    counts = watched.counts()
    http = EntryKind.HTTP
    assert (counts.seen[http], counts.seen_traced[http], counts.kept_traced[http]) == (3, 3, 2)
    assert [entry.request.split(b" ")[0] for entry in watched.entries(2)] == [b"GET", b"GET"]


def test_a_rule_by_operation_holds(watched: Watched, pair: Pair, rules: Rules) -> None:
    rules.set({"GET /pay": 100, "/shop.Orders/*": 100})
    pair.send(REQUEST, traced(False), REQUEST.replace(b"GET", b"PUT"))
    assert (watched.seen(), watched.kept()) == (3, 1)


def test_a_rule_by_operation_holds_for_calls(watched: Watched, pair: Pair, rules: Rules) -> None:
    rules.set({"/shop.Orders/*": 100})
    client = Client(huffman=True)
    pair.send(PREFACE, *(client.request(path=path) for path in ("/shop.Orders/Get", "/shop.Carts/Get") * 3))
    counts = watched.counts()
    assert (counts.seen[EntryKind.GRPC], counts.kept[EntryKind.GRPC]) == (6, 3)


def test_the_verifier_has_instructions_to_spare(watched: Watched) -> None:
    tls = watched.capture.tls()
    assert 0 < max(program.verified_instructions for program in tls.programs.values()) < 700_000
    tls.close()


def test_bytes_over_memory_are_counted_as_those_over_sockets(watched: Watched, certificate: Certificate) -> None:
    """As asyncio has it: the library never touches the socket."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate, certificate.key)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(to_server, to_client, server_side=True)
    client = ssl._create_unverified_context().wrap_bio(to_client, to_server)
    for _ in range(3):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                pass
    with pytest.raises(ssl.SSLWantReadError):
        server.read(65536)
    for _ in range(20):
        client.write(REQUEST)
        assert server.read(65536) == REQUEST
    assert watched.seen() == 20


def test_databases_are_followed(watched: Watched, pair: Pair) -> None:
    pair.send(STARTUP, *[pg_query()] * 3, pg_query()[:9], pg_query()[9:])
    assert watched.counts().seen[EntryKind.DB] == 4
    assert {entry.protocol for entry in watched.entries(4)} == {Protocol.POSTGRES}


def test_a_pipeline_is_counted_one_by_one(watched: Watched, pair: Pair) -> None:
    pair.send(resp(b"GET", b"k") * 7)
    assert watched.counts().seen[EntryKind.DB] == 7


def test_an_object_of_the_same_address_is_another_connection(watched: Watched, certificate: Certificate) -> None:
    """The allocator hands out the same address again, and the one before broke off within a statement."""
    desync = watched.capture.losses()["desync"]
    for _ in range(20):
        pair = Pair(certificate)
        pair.send(pg_query()[:-3])
        pair.close()
        pair = Pair(certificate)
        pair.send(REQUEST)
        pair.close()
    assert watched.seen() == 20
    assert watched.capture.losses()["desync"] == desync


def test_answers_follow_their_requests(watched: Watched, certificate: Certificate) -> None:
    watched.capture.want_answers(os.getpid(), watched.row, True)
    pair = Pair(certificate)
    pair.send(REQUEST)
    pair.answer(RESPONSE)
    pair.close()
    entries = watched.entries(6)
    connections = {entry.connection for entry in entries}
    assert len(connections) == 2  # the client's side, and the server's
    for connection in connections:
        one = [entry for entry in entries if entry.connection == connection]
        assert [entry.event for entry in one] == [Event.ENTRY, Event.ANSWER, Event.CLOSED]
        assert (one[0].size, one[1].size) == (len(REQUEST), len(RESPONSE))
        assert one[1].request == RESPONSE


def test_a_statement_by_tls_is_of_the_request_that_the_thread_serves(
    watched: Watched, certificate: Certificate
) -> None:
    watched.capture.want_answers(os.getpid(), watched.row, True)
    served, called = RemotePair(), Pair(certificate)
    served.send(REQUEST)
    called.send(resp(b"GET", b"key"))
    served.answer(RESPONSE)
    called.send(resp(b"GET", b"key"))
    served.close()
    called.close()
    eventually(lambda: sum(entry.event == Event.ENTRY for entry in watched.emitted()) >= 3, "three entries")
    request, during, after = (entry for entry in watched.emitted() if entry.event == Event.ENTRY)
    # Which sockets block is known on one path alone.
    known = watched.capture.path == "socket"
    assert (during.serving, after.serving) == (request.connection if known else 0, 0)
    assert during.parent == (Parent.LOCAL_KEPT if known else Parent.NONE)


def test_threads_do_not_disturb_each_other(watched: Watched, certificate: Certificate) -> None:
    def talk(_: int) -> None:
        pair = Pair(certificate)
        for _ in range(500):
            pair.send(REQUEST)
        pair.close()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(talk, range(8)))
    assert watched.counts().seen == watched.counts().reverse == (0, 4000, 0, 0)


def test_what_a_socket_carries_behind_a_hello_is_not_looked_at(watched: Watched) -> None:
    """Kernel TLS hands clear text to the socket, and the library's call has been counted."""
    ours, theirs = socket.socketpair()
    ours.sendall(b"\x16\x03\x01\x00\xc4\x01\x00\x00\xc0\x03\x03" + bytes(189))
    theirs.recv(4096)
    for _ in range(5):
        ours.sendall(REQUEST)
        theirs.recv(4096)
    ours.close()
    theirs.close()
    assert watched.counts().seen == watched.counts().reverse == (0, 0, 0, 0)


def test_what_is_no_target_is_not_counted(watched: Watched, pair: Pair) -> None:
    watched.capture.remove_target(os.getpid())
    pair.send(REQUEST)
    assert watched.seen() == 0
    assert watched.emitted() == []
    watched.capture.add_target(os.getpid(), watched.row)
    watched.set(abi.encode_word(100))
