"""What passes while the programs are detached is not seen: what they knew of connections is out of date."""

from __future__ import annotations

import os
from typing import Literal

import pytest

from spandial import abi
from spandial.abi import EntryKind, Event, RecordFlag
from tests.agent_process import eventually
from tests.in_kernel.conftest import Watched
from tests.in_kernel.remote import RemotePair
from tests.in_kernel.test_capture import REQUEST, RESPONSE
from tests.in_kernel.test_databases import Pair, counted, my_query, pg_query, resp
from tests.in_kernel.test_http2 import PREFACE, Client

pytestmark = pytest.mark.kernel

LOST = ("desync", "unreadable", "undecided")


def losses(watched: Watched) -> list[int]:
    found = watched.capture.losses()
    return [found[reason] for reason in LOST]


def far_pair(watched: Watched, here: Literal["client", "server"] = "server") -> RemotePair:
    """Its process is forked while nothing is attached: a link lives as long as anybody has its descriptor."""
    watched.capture.want_answers(os.getpid(), watched.row, True)
    watched.capture.detach()
    pair = RemotePair(here)
    watched.capture.attach()
    return pair


@pytest.mark.parametrize(
    "message", [pg_query(), my_query(), resp(b"SET", b"key", b"value" * 10)], ids=["pg", "my", "redis"]
)
def test_a_message_whose_end_was_not_seen_takes_nothing_of_the_next_one(watched: Watched, message: bytes) -> None:
    pair, before = Pair(), losses(watched)
    pair.send(message, message[:20])
    watched.capture.detach()
    pair.send(message[20:], message)
    watched.capture.attach()
    pair.send(message, message)
    pair.close()
    assert counted(watched)[0] == 1 + 1 + 2  # of the one that was cut: known by its beginning
    assert losses(watched) == before


def test_header_fields_that_were_not_seen_are_missed(watched: Watched) -> None:
    """HTTP/2: what a table holds from then on is not known, as of a connection that was there before the agent."""
    pair, client = Pair(), Client()
    pair.send(PREFACE, client.request())
    watched.capture.detach()
    pair.send(client.request(("x-shop", "1"), path="/shop.Orders/Put"))
    watched.capture.attach()
    pair.send(client.request(("x-shop", "1"), path="/shop.Orders/Put"))
    pair.close()
    first, second = (entry for entry in watched.entries(2) if entry.event == Event.ENTRY)
    assert first.flags & RecordFlag.FRESH
    assert not second.flags & RecordFlag.FRESH
    assert first.connection != second.connection
    assert sum(watched.counts().seen) == 2


def test_an_answer_belongs_to_no_request_from_before(watched: Watched) -> None:
    pair = far_pair(watched)
    pair.send(REQUEST)
    watched.capture.detach()
    pair.answer(RESPONSE)
    watched.capture.attach()
    pair.answer(b"event: 1\n\n")
    pair.send(REQUEST)
    pair.answer(RESPONSE)
    pair.close()
    eventually(lambda: len(watched.emitted()) >= 3, "the second request is answered")
    assert [entry.event for entry in watched.emitted()][:3] == [Event.ENTRY, Event.ENTRY, Event.ANSWER]
    assert watched.seen() == 2


@pytest.mark.parametrize("attached", ["socket"], indirect=True)  # sys_exit knows of no request that is served
def test_a_thread_serves_no_request_from_before(watched: Watched) -> None:
    served, called = far_pair(watched), far_pair(watched, "client")
    served.send(REQUEST)
    watched.capture.detach()
    served.answer(RESPONSE)
    watched.capture.attach()
    called.send(resp(b"GET", b"key"))
    served.close()
    called.close()
    eventually(lambda: len(watched.emitted()) >= 2, "the statement is handed over")
    assert [entry.serving for entry in watched.emitted()] == [0, 0]
    assert watched.counts().seen[EntryKind.DB] == 1


def test_a_process_for_which_there_is_no_room_keeps_nobody_from_being_attached_again(watched: Watched) -> None:
    held = range(1 << 22, (1 << 22) + 3 * abi.ROWS)  # no process has such a number

    def fill() -> None:
        for number in held:
            watched.capture.add_target(number, watched.row)

    with pytest.raises(OSError, match="Argument list too long"):
        fill()
    watched.capture.detach()
    watched.capture.attach()
    pair = Pair()
    pair.send(REQUEST)
    pair.close()
    assert watched.seen() == 1
    for number in held:
        watched.capture.remove_target(number)
