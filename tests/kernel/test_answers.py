"""The answers to kept entries of processes without a hook are handed over, and nobody else's."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from spandial import abi
from spandial.abi import EntryKind, Event, Protocol
from tests.kernel.conftest import Watched
from tests.kernel.test_capture import REQUEST, RESPONSE, traced
from tests.kernel.test_databases import Pair, pg_query, resp

pytestmark = pytest.mark.kernel

ENTRY, ANSWER, CLOSED = Event.ENTRY, Event.ANSWER, Event.CLOSED


@pytest.fixture
def pair(watched: Watched) -> Iterator[Pair]:
    watched.capture.want_answers(os.getpid(), watched.row, True)
    pair = Pair()
    yield pair
    pair.close()


def test_an_http_answer_follows_its_request(watched: Watched, pair: Pair) -> None:
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


def test_answers_to_dropped_requests_are_not(watched: Watched, pair: Pair) -> None:
    watched.set(abi.encode_word(0, emit=True))
    for sampled in (True, False, False, True):
        pair.send(traced(sampled))
        pair.answer(RESPONSE)
    events = [entry.event for entry in watched.entries(4)]
    assert events == [ENTRY, ANSWER, ENTRY, ANSWER]


@pytest.mark.parametrize(
    ("request_", "answer"), [(resp(b"GET", b"k"), b"$1\r\nv\r\n"), (pg_query(), b"E\0\0\0\x08SERR")]
)
def test_a_databases_answer_follows_its_statement(watched: Watched, pair: Pair, request_: bytes, answer: bytes) -> None:
    pair.send(request_)
    pair.answer(answer)
    entry, reply = watched.entries(2)
    assert (entry.event, reply.event, reply.request) == (ENTRY, ANSWER, answer)
    assert entry.connection == reply.connection
    assert reply.protocol in (Protocol.REDIS, Protocol.POSTGRES)


def test_the_end_of_a_connection_is_told_while_an_answer_is_wanted(watched: Watched, pair: Pair) -> None:
    pair.send(REQUEST)
    pair.client.shutdown(1)
    assert pair.server.recv(100) == b""
    entry, closed = watched.entries(2)
    assert (entry.event, closed.event) == (ENTRY, CLOSED)
    assert entry.connection == closed.connection


def test_nobody_gets_answers_that_nobody_wants(watched: Watched) -> None:
    pair = Pair()
    for message in (REQUEST, REQUEST):
        pair.send(message)
        pair.answer(RESPONSE)
    pair.close()
    assert [entry.event for entry in watched.entries(2)] == [ENTRY, ENTRY]


def test_answers_end_when_a_hook_comes(watched: Watched, pair: Pair) -> None:
    pair.send(REQUEST)
    watched.capture.want_answers(os.getpid(), watched.row, False)
    pair.answer(RESPONSE)
    pair.send(REQUEST)
    pair.answer(RESPONSE)
    pair.send(REQUEST)
    assert [entry.event for entry in watched.entries(3)] == [ENTRY, ENTRY, ENTRY]


def test_a_connection_is_followed_on_when_answers_end(watched: Watched, pair: Pair) -> None:
    """Its next bytes look like an answer of HTTP/1, and are in the middle of a statement."""
    query = pg_query(b"SELECT 'HTTP/1.1 200 OK'")
    cut = query.index(b"HTTP")
    desync = watched.capture.losses()["desync"]
    pair.send(query, query[:cut])
    watched.capture.want_answers(os.getpid(), watched.row, False)
    pair.send(query[cut:], query)
    assert watched.counts().seen[EntryKind.DB] == 3
    assert watched.capture.losses()["desync"] == desync
