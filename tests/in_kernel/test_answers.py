"""The answers to kept entries of processes without a hook are handed over, and nobody else's."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from spandial import abi
from spandial.abi import ADDRESSES, EntryKind, Event, Parent, Protocol, RecordFlag
from tests.in_kernel.conftest import Watched
from tests.in_kernel.remote import RemotePair
from tests.in_kernel.test_capture import REQUEST, RESPONSE, traced
from tests.in_kernel.test_databases import pg_query, resp

pytestmark = pytest.mark.kernel

ENTRY, ANSWER, CLOSED = Event.ENTRY, Event.ANSWER, Event.CLOSED


@pytest.fixture
def pair(watched: Watched) -> Iterator[RemotePair]:
    """This process serves."""
    watched.capture.want_answers(os.getpid(), watched.row, True)
    pair = RemotePair()
    yield pair
    pair.close()


@pytest.fixture
def calls(watched: Watched) -> Iterator[RemotePair]:
    """This process calls."""
    watched.capture.want_answers(os.getpid(), watched.row, True)
    pair = RemotePair("client")
    yield pair
    pair.close()


def test_an_http_answer_follows_its_request(watched: Watched, pair: RemotePair) -> None:
    body = bytes(range(256)) * 3
    pair.send(REQUEST)
    pair.answer(RESPONSE)
    pair.answer(body)
    pair.send(REQUEST)
    request, first, second, again = watched.entries(4)
    assert [entry.event for entry in (request, first, second, again)] == [ENTRY, ANSWER, ANSWER, ENTRY]
    assert len({entry.connection for entry in (request, first, second, again)}) == 1
    assert (request.size, first.size, second.size) == (len(REQUEST), len(RESPONSE), len(body))
    assert first.request == RESPONSE
    assert second.request == body[:128] + body[-128:]
    assert request.time_ns < first.time_ns < second.time_ns < again.time_ns


def test_answers_to_dropped_requests_are_not(watched: Watched, pair: RemotePair) -> None:
    watched.set(abi.encode_word(0, emit=True))
    for sampled in (True, False, False, True):
        pair.send(traced(sampled))
        pair.answer(RESPONSE)
    events = [entry.event for entry in watched.entries(4)]
    assert events == [ENTRY, ANSWER, ENTRY, ANSWER]


@pytest.mark.parametrize(
    ("request_", "answer"), [(resp(b"GET", b"k"), b"$1\r\nv\r\n"), (pg_query(), b"E\0\0\0\x08SERR")]
)
def test_a_databases_answer_follows_its_statement(
    watched: Watched, calls: RemotePair, request_: bytes, answer: bytes
) -> None:
    calls.send(request_)
    calls.answer(answer)
    entry, reply = watched.entries(2)
    assert (entry.event, reply.event, reply.request) == (ENTRY, ANSWER, answer)
    assert entry.connection == reply.connection
    assert reply.protocol in (Protocol.REDIS, Protocol.POSTGRES)


def test_the_end_of_a_connection_is_told_while_an_answer_is_wanted(watched: Watched, pair: RemotePair) -> None:
    pair.send(REQUEST)
    pair.shut()
    assert pair.server.recv(100) == b""
    entry, closed = watched.entries(2)
    assert (entry.event, closed.event) == (ENTRY, CLOSED)
    assert entry.connection == closed.connection


def test_a_kept_call_that_the_process_sent_is_handed_over_with_its_answer(watched: Watched, calls: RemotePair) -> None:
    calls.send(traced(True))
    calls.answer(RESPONSE)
    calls.send(REQUEST)
    call, answer, untraced = watched.entries(3)
    assert [record.event for record in (call, answer, untraced)] == [ENTRY, ANSWER, ENTRY]
    assert call.flags == untraced.flags == RecordFlag.SENT
    assert (call.entered, call.span_id, untraced.span_id) == (False, 0xB7AD6B7169203331, 0)
    counts = watched.counts()
    assert (counts.reverse[EntryKind.HTTP], counts.reverse_kept[EntryKind.HTTP]) == (2, 2)
    assert (counts.seen[EntryKind.HTTP], counts.kept[EntryKind.HTTP]) == (0, 0)


def test_a_dropped_call_is_not_handed_over(watched: Watched, calls: RemotePair) -> None:
    watched.set(abi.encode_word(0, emit=True))
    calls.send(REQUEST)
    calls.answer(RESPONSE)
    calls.send(traced(True))
    assert [record.parent for record in watched.entries(1)] == [Parent.REMOTE_KEPT]
    counts = watched.counts()
    assert (counts.reverse[EntryKind.HTTP], counts.reverse_kept[EntryKind.HTTP]) == (2, 1)


def test_the_bytes_of_a_body_are_told_with_the_answer(watched: Watched, pair: RemotePair) -> None:
    pair.send(REQUEST, b"*1\r\n$4\r\nPING\r\n", b"body")
    pair.answer(RESPONSE)
    pair.answer(b"more")
    entry, first, second = watched.entries(3)
    assert (entry.body, first.body, second.body) == (0, 18, 0)
    assert watched.counts().reverse[EntryKind.DB] == 0


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_both_ends_of_a_connection_are_told(watched: Watched, family: int) -> None:
    watched.capture.want_answers(os.getpid(), watched.row, True)
    pair = RemotePair("server", family)
    pair.send(REQUEST, REQUEST)
    addresses = [pair.server.getsockname()[:2], pair.server.getpeername()[:2]]
    pair.close()
    if watched.capture.path == "sys_exit":
        assert [record.event for record in watched.entries(2)][:2] == [ENTRY, ENTRY]
        return
    ends, entry, again, *_ = watched.entries(3)
    assert [record.event for record in (ends, entry, again)] == [Event.CONNECTION, ENTRY, ENTRY]
    found, local_port, peer_port, _, local, peer = ADDRESSES.unpack(ends.request)
    size = 4 if family == socket.AF_INET else 16
    hosts = [socket.inet_ntop(family, host[:size]) for host in (local, peer)]
    assert (found, [*zip(hosts, (local_port, peer_port))]) == (family, addresses)
    assert ends.connection == entry.connection == again.connection


def test_nobody_gets_answers_that_nobody_wants(watched: Watched) -> None:
    pair = RemotePair()
    for message in (REQUEST, REQUEST):
        pair.send(message)
        pair.answer(RESPONSE)
    pair.close()
    assert [entry.event for entry in watched.entries(2)] == [ENTRY, ENTRY]


def test_answers_end_when_a_hook_comes(watched: Watched, pair: RemotePair) -> None:
    pair.send(REQUEST)
    watched.capture.want_answers(os.getpid(), watched.row, False)
    pair.answer(RESPONSE)
    pair.send(REQUEST)
    pair.answer(RESPONSE)
    pair.send(REQUEST)
    assert [entry.event for entry in watched.entries(3)] == [ENTRY, ENTRY, ENTRY]


def test_a_connection_is_followed_on_when_answers_end(watched: Watched, calls: RemotePair) -> None:
    """Its next bytes look like an answer of HTTP/1, and are in the middle of a statement."""
    query = pg_query(b"SELECT 'HTTP/1.1 200 OK'")
    cut = query.index(b"HTTP")
    desync = watched.capture.losses()["desync"]
    calls.send(query, query[:cut])
    watched.capture.want_answers(os.getpid(), watched.row, False)
    calls.send(query[cut:], query)
    assert watched.counts().seen[EntryKind.DB] == 3
    assert watched.capture.losses()["desync"] == desync


def test_a_full_ring_buffer_counts_entries_and_other_records_apart(watched: Watched, pair: RemotePair) -> None:
    before, total = watched.capture.losses(), 12_000
    watched.reading.clear()
    for _ in range(total):
        pair.send(REQUEST)
        pair.answer(RESPONSE)
    losses = watched.capture.losses()
    lost, others = (losses[reason] - before[reason] for reason in ("ring_full", "ring_full_others"))
    watched.reading.set()
    assert watched.kept() == total
    assert lost > 0
    assert others > 0
    events = [entry.event for entry in watched.entries(2 * total - lost - others)]
    assert events.count(ENTRY) == total - lost
