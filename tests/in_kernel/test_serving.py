"""What a thread does while it serves a request is that request's, where the thread can do nothing else meanwhile."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator

import pytest

from spandial import abi
from spandial.abi import EntryKind, Event, Mode, Parent
from spandial_agent.records.record import Entry
from tests.agent_process import eventually
from tests.in_kernel.conftest import Watched
from tests.in_kernel.remote import RemotePair
from tests.in_kernel.test_capture import REQUEST, RESPONSE, traced
from tests.in_kernel.test_databases import resp

# sys_exit sees no sockets, and so does not know which of them block: there it is nobody's.
pytestmark = [pytest.mark.kernel, pytest.mark.parametrize("attached", ["socket"], indirect=True)]

GET = resp(b"GET", b"key")
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"


@pytest.fixture
def served(watched: Watched) -> Iterator[RemotePair]:
    """A client of this process."""
    watched.capture.want_answers(os.getpid(), watched.row, True)
    pair = RemotePair()
    yield pair
    pair.close()


@pytest.fixture
def called(served: RemotePair) -> Iterator[RemotePair]:
    """A server that this process calls, or a database."""
    pair = RemotePair("client")
    yield pair
    pair.close()


def begun(watched: Watched, count: int) -> list[Entry]:
    """The requests, calls and statements that were handed over."""

    def found() -> list[Entry]:
        return [entry for entry in watched.emitted() if entry.event == Event.ENTRY]

    eventually(lambda: len(found()) >= count, f"{count} requests")
    return found()


def test_a_statement_belongs_to_the_request_until_it_is_answered(
    watched: Watched, served: RemotePair, called: RemotePair
) -> None:
    called.send(GET)
    served.send(REQUEST)
    called.send(GET)
    served.answer(INTERIM)
    called.send(GET)
    served.answer(RESPONSE)
    called.send(GET)
    before, request, during, again, after = begun(watched, 5)
    assert [entry.serving for entry in (before, request, after)] == [0, 0, 0]
    assert during.serving == again.serving == request.connection != 0
    assert (during.parent, after.parent) == (Parent.LOCAL_KEPT, Parent.NONE)
    assert during.randomness == request.randomness


def test_however_many_threads_serve_requests_nobody_else_loses_his(
    watched: Watched, served: RemotePair, called: RemotePair
) -> None:
    """Also of threads that end before they answer."""
    served.send(REQUEST)
    (request,) = begun(watched, 1)
    watched.set(abi.encode_word(0))
    client, server = socket.socketpair()

    def ask() -> None:
        for _ in range(12_000):
            client.sendall(REQUEST)
            other = threading.Thread(target=server.recv, args=(65536,))
            other.start()
            other.join()

    asking = threading.Thread(target=ask)
    asking.start()
    asking.join()
    client.close()
    server.close()
    watched.set(abi.encode_word(100, emit=True))
    called.send(GET)
    statement = begun(watched, 2)[1]
    assert (statement.serving, statement.parent) == (request.connection, Parent.LOCAL_KEPT)


@pytest.mark.parametrize("sampled", [True, False])
def test_a_statement_is_kept_with_its_request(
    watched: Watched, served: RemotePair, called: RemotePair, sampled: bool
) -> None:
    """Not by the rate, but for a rate that is for its protocol."""
    watched.set(abi.encode_word(0 if sampled else 100, emit=True))
    served.send(traced(sampled))
    called.send(GET, GET)
    served.answer(RESPONSE)
    called.send(GET)
    expected = 2 if sampled else 1
    counts = watched.counts()
    assert (counts.seen[EntryKind.DB], counts.kept[EntryKind.DB]) == (3, expected)


def test_a_rate_for_the_protocol_thins_statements(watched: Watched, served: RemotePair, called: RemotePair) -> None:
    rates = [abi.encode_word(100, emit=True)] * len(EntryKind)
    rates[EntryKind.DB] = abi.encode_word(0, emit=True, thin=True)
    watched.table.write(watched.row, rates, 0)
    served.send(traced(True))
    called.send(GET, GET)
    assert watched.counts().kept[EntryKind.DB] == 0


def test_a_call_belongs_to_the_request_unless_it_is_of_another_trace(
    watched: Watched, served: RemotePair, called: RemotePair
) -> None:
    other = traced(True).replace(b"0af7651916cd43dd8448eb211c80319c", b"1af7651916cd43dd8448eb211c80319c")
    assert other != traced(True)
    served.send(traced(True))
    called.send(REQUEST, traced(True), other)
    request, plain, same, another = begun(watched, 4)
    assert [entry.serving for entry in (plain, same, another)] == [request.connection, request.connection, 0]


def test_other_threads_and_event_loops_are_not_guessed_about(
    watched: Watched, served: RemotePair, called: RemotePair
) -> None:
    watched.set(abi.encode_word(100, Mode.STRICT, emit=True))
    served.send(REQUEST)
    thread = threading.Thread(target=called.send, args=(GET,))
    thread.start()
    thread.join()
    served.answer(RESPONSE)
    served.server.setblocking(False)
    try:
        served.send(REQUEST)
        called.send(GET)
    finally:
        served.server.setblocking(True)
    _, elsewhere, _, on_a_loop = begun(watched, 4)
    assert (elsewhere.serving, on_a_loop.serving) == (0, 0)
