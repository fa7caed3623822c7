"""Do exactly so many things, expect exactly so many counts: both capture paths, all six system calls."""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from spandial import abi
from spandial.abi import EntryKind, Event, Mode, Parent, RecordFlag
from spandial_agent.capture.tally import by_kind
from tests.in_kernel.conftest import Watched

pytestmark = pytest.mark.kernel

REQUEST = b"GET /pay?card=1 HTTP/1.1\r\nhost: x\r\n\r\n"
RESPONSE = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
TRACE_ID = 0x0AF7651916CD43DD8448EB211C80319C


def traced(sampled: bool, trace_id: int = TRACE_ID, tracestate: str = "") -> bytes:
    state = f"tracestate: {tracestate}\r\n" if tracestate else ""
    parent = f"00-{trace_id:032x}-b7ad6b7169203331-{int(sampled):02x}"
    return f"GET / HTTP/1.1\r\nTraceParent: {parent}\r\n{state}\r\n".encode()


def connect(family: socket.AddressFamily, tmp_path: Path) -> tuple[socket.socket, socket.socket]:
    """A connected client and server."""
    address: object = {
        socket.AF_INET: ("127.0.0.1", 0),
        socket.AF_INET6: ("::1", 0),
        socket.AF_UNIX: str(tmp_path / "socket"),
    }[family]
    with socket.socket(family) as listener:
        listener.bind(address)  # type: ignore[arg-type]
        listener.listen()
        client = socket.socket(family)
        client.connect(listener.getsockname())
        server, _ = listener.accept()
    return client, server


def readv(sock: socket.socket) -> bytes:
    buffer = bytearray(4096)
    return bytes(buffer[: os.readv(sock.fileno(), [buffer, bytearray(10)])])


RECEIVE: dict[str, Callable[[socket.socket], bytes]] = {
    "recvfrom": lambda sock: sock.recv(4096),
    "recvmsg": lambda sock: sock.recvmsg(4096)[0],
    "read": lambda sock: os.read(sock.fileno(), 4096),
    "readv": readv,
}
SEND: dict[str, Callable[[socket.socket, bytes], int]] = {
    "sendto": lambda sock, data: sock.send(data),
    "sendmsg": lambda sock, data: sock.sendmsg([data]),
    "write": lambda sock, data: os.write(sock.fileno(), data),
    "writev": lambda sock, data: os.writev(sock.fileno(), [data]),
}


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6, socket.AF_UNIX], ids=lambda f: f.name)
@pytest.mark.parametrize("receive", RECEIVE)
def test_every_received_request_is_counted_once(
    watched: Watched, family: socket.AddressFamily, receive: str, tmp_path: Path
) -> None:
    client, server = connect(family, tmp_path)
    with client, server:
        for _ in range(23):
            client.send(REQUEST)
            assert RECEIVE[receive](server) == REQUEST
            server.send(RESPONSE)
            client.recv(4096)
    counts = watched.counts()
    assert counts.seen == (0, 23, 0, 0)
    assert counts.kept == (0, 23, 0, 0)
    assert counts.seen_traced == (0, 0, 0, 0)
    assert counts.reverse == (0, 23, 0, 0)


@pytest.mark.parametrize("others", [0, 50, abi.ROWS])
def test_tallies_are_the_counts_of_all_processors_whether_rows_are_read_one_by_one_or_together(
    watched: Watched, others: int
) -> None:
    client, server = socket.socketpair()

    def exchange(processor: int) -> None:
        os.sched_setaffinity(0, {processor})  # of this thread
        client.send(REQUEST)
        server.recv(4096)

    with client, server:
        for processor in os.sched_getaffinity(0):
            thread = threading.Thread(target=exchange, args=[processor])
            thread.start()
            thread.join()
        client.send(traced(sampled=True))
        server.recv(4096)
    row = watched.row.number
    rows = range(max(row - others, abi.DEFAULT_ROW), min(row + others + 1, abi.ROWS))
    tallies = dict(zip(rows, watched.capture.tallies(rows)))
    assert len(tallies) == len(rows)
    counts = watched.counts()
    assert by_kind(tallies[row]) == counts[:4]
    assert counts.seen[EntryKind.HTTP] == len(os.sched_getaffinity(0)) + 1
    assert counts.kept_traced[EntryKind.HTTP] == 1


@pytest.mark.parametrize("send", SEND)
def test_a_sent_request_is_no_entry(watched: Watched, send: str, tmp_path: Path) -> None:
    client, server = connect(socket.AF_INET, tmp_path)
    with client, server:
        for _ in range(23):
            SEND[send](client, REQUEST)
    counts = watched.counts()
    assert counts.reverse == (0, 23, 0, 0)
    assert counts.seen == (0, 0, 0, 0)


def test_a_peek_is_no_receipt(watched: Watched, tmp_path: Path) -> None:
    client, server = connect(socket.AF_INET, tmp_path)
    with client, server:
        client.send(REQUEST)
        server.recv(4096, socket.MSG_PEEK)
        server.recvmsg(4096, 0, socket.MSG_PEEK)
        assert watched.seen() == 0
        server.recv(4096)
        assert watched.seen() == 1


def test_what_is_no_request_is_not_counted(watched: Watched, tmp_path: Path) -> None:
    client, server = connect(socket.AF_UNIX, tmp_path)
    with client, server:
        for data in (b"x", b"GET /", b"hello, world", RESPONSE, b"SELECT 1;       ", b"\0" * 100):
            client.send(data)
            server.recv(4096)
    assert watched.counts().seen == watched.counts().reverse == (0, 0, 0, 0)


def test_another_process_is_not_counted(watched: Watched) -> None:
    code = f"import socket; a, b = socket.socketpair(); a.send({REQUEST!r}); b.recv(100)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert watched.seen() == 0


def test_the_entry_says_who_what_and_why(watched: Watched) -> None:
    a, b = socket.socketpair()
    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    a.send(REQUEST)
    b.recv(4096)
    a.send(traced(True))
    b.recv(4096)
    plain, with_parent = watched.entries(2)
    assert (plain.tgid, plain.kind, plain.request) == (os.getpid(), EntryKind.HTTP, REQUEST.split(b"\r\n")[0])
    assert before <= plain.time_ns <= time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    assert (plain.trace_id, plain.parent) == (0, Parent.NONE)
    assert plain.row == watched.row.number
    assert (with_parent.trace_id, with_parent.span_id) == (TRACE_ID, 0xB7AD6B7169203331)
    assert with_parent.parent == Parent.REMOTE_KEPT
    assert with_parent.randomness == TRACE_ID & abi.RANDOMNESS_MASK


@pytest.mark.parametrize(
    ("rate", "mode", "sampled", "kept"),
    [
        (0, Mode.FOLLOW, True, True),
        (100, Mode.FOLLOW, False, False),
        (100, Mode.BOOST, False, True),
        (0, Mode.BOOST, True, True),
        (0, Mode.BOOST, False, False),
        (0, Mode.STRICT, True, False),
        (100, Mode.STRICT, False, True),
    ],
)
def test_the_callers_decision_is_honoured_as_the_mode_says(
    watched: Watched, rate: float, mode: Mode, sampled: bool, kept: bool
) -> None:
    watched.set(abi.encode_word(rate, mode))
    a, b = socket.socketpair()
    for _ in range(5):
        a.send(traced(sampled))
        b.recv(4096)
    assert watched.counts().seen_traced == (0, 5, 0, 0)
    assert watched.counts().kept_traced == (0, 5 if kept else 0, 0, 0)


def test_the_threshold_is_compared_to_the_last_bit(watched: Watched) -> None:
    word = abi.encode_word(30, Mode.STRICT)
    threshold = abi.threshold_of(word)
    watched.set(word)
    a, b = socket.socketpair()
    for randomness, kept in ((threshold - 1, 0), (threshold, 1), (threshold + 1, 2)):
        a.send(traced(True, trace_id=(0xABC << 56) | randomness))
        b.recv(4096)
        assert watched.kept() == kept
    a.send(traced(True, trace_id=(0xABC << 56) | 1, tracestate=f"x=1,ot=th:8;rv:{threshold:014x}"))
    b.recv(4096)
    assert watched.kept() == 3


def test_a_turn_of_the_dial_holds_from_the_next_request_on(watched: Watched) -> None:
    a, b = socket.socketpair()
    for turn in range(1, 201):
        watched.set(abi.encode_word(100 if turn % 2 else 0))
        a.send(REQUEST)
        b.recv(4096)
        assert watched.kept() == (turn + 1) // 2


def test_a_process_that_gets_another_row_is_counted_in_it_from_zero_and_obeys_it(watched: Watched) -> None:
    a, b = socket.socketpair()
    a.send(REQUEST)
    b.recv(4096)
    assert (watched.seen(), watched.kept()) == (1, 1)
    other = watched.table.allocate(os.getpid(), [abi.encode_word(0)] * len(abi.EntryKind), abi.encode_word(0))
    watched.capture.move_target(os.getpid(), other)
    a.send(REQUEST)
    b.recv(4096)
    counts = watched.capture.counts(other.number)
    assert (sum(counts.seen), sum(counts.kept), watched.seen()) == (1, 0, 1)
    watched.table.free(other)


def test_an_expired_lease_means_the_fallback_word(watched: Watched) -> None:
    watched.set(abi.encode_word(100), fallback=abi.encode_word(0))
    watched.table.renew_lease(-1)
    a, b = socket.socketpair()
    a.send(REQUEST)
    b.recv(4096)
    assert (watched.seen(), watched.kept()) == (1, 0)
    watched.table.renew_lease(60)
    a.send(REQUEST)
    b.recv(4096)
    assert (watched.seen(), watched.kept()) == (2, 1)


def test_without_emit_nothing_is_emitted(watched: Watched) -> None:
    watched.set(abi.encode_word(100))
    a, b = socket.socketpair()
    a.send(REQUEST)
    b.recv(4096)
    time.sleep(0.3)
    assert watched.kept() == 1
    assert watched.emitted() == []


def test_a_row_that_is_somebody_elses_keeps_nothing_and_is_counted(watched: Watched) -> None:
    before = watched.capture.losses()["stale_row"]
    watched.capture.add_target(os.getpid(), watched.row._replace(epoch=watched.row.epoch + 1))
    a, b = socket.socketpair()
    a.send(REQUEST)
    b.recv(4096)
    assert watched.capture.losses()["stale_row"] == before + 1
    assert watched.kept() == 0


def test_a_buffer_that_cannot_be_read_is_counted(watched: Watched, tmp_path: Path) -> None:
    before = watched.capture.losses()["unreadable"]
    client, server = connect(socket.AF_INET, tmp_path)
    with client, server:
        client.send(REQUEST)
        # TCP discards the data: it "receives" into no buffer at all (tcp(7), MSG_TRUNC).
        received = ctypes.CDLL(None).recv(server.fileno(), None, 4096, socket.MSG_TRUNC)
    assert received == len(REQUEST)
    assert watched.capture.losses()["unreadable"] == before + 1
    assert watched.seen() == 0


def test_a_full_ring_buffer_is_counted_and_loses_no_count(watched: Watched) -> None:
    before = watched.capture.losses()["ring_full"]
    a, b = socket.socketpair()
    total = 20_000
    watched.reading.clear()
    a.send(REQUEST)
    b.recv(4096)
    time.sleep(0.3)  # the reader has it, and waits to hand it over
    for _ in range(total - 1):
        a.send(REQUEST)
        b.recv(4096)
    lost = watched.capture.losses()["ring_full"] - before
    watched.reading.set()
    assert lost > 0
    assert watched.kept() == total
    assert len(watched.entries(total - lost)) == total - lost


def test_two_threads_on_two_processors_are_counted_exactly(watched: Watched) -> None:
    def work() -> None:
        a, b = socket.socketpair()
        for _ in range(5000):
            a.send(REQUEST)
            b.recv(4096)

    watched.set(abi.encode_word(100))
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert watched.counts().seen == (0, 20_000, 0, 0)


def test_large_and_offset_buffers_are_read_from_their_start(watched: Watched) -> None:
    page = mmap.mmap(-1, 1 << 20)
    a, b = socket.socketpair()
    a.send(REQUEST + b"x" * 3000)
    b.recv_into(memoryview(page)[4096 - 5 :], 65536)
    assert watched.seen() == 1


def test_the_verifier_has_instructions_to_spare(watched: Watched) -> None:
    """Its limit is a million; another kernel or compiler needs more or less."""
    assert 0 < max(program.verified_instructions for program in watched.capture.programs) < 600_000


def test_examples_of_what_is_not_kept_are_handed_over_while_they_are_wanted(watched: Watched) -> None:
    watched.set(abi.encode_word(0, Mode.STRICT))
    a, b = socket.socketpair()
    with a, b:
        for wanted in (False, True, False):
            watched.table.want_examples(watched.row, wanted)
            for request in (REQUEST, traced(True)):
                a.send(request)
                b.recv(4096)
        watched.set(abi.encode_word(100, emit=True))
        a.send(REQUEST)
        b.recv(4096)
    *examples, kept = watched.entries(4)
    # Of what was sent, and received: without a trace context it is received only.
    assert [(e.event, e.flags & RecordFlag.SENT, e.trace_id) for e in examples] == [
        (Event.EXAMPLE, 0, 0),
        (Event.EXAMPLE, RecordFlag.SENT, TRACE_ID),
        (Event.EXAMPLE, 0, TRACE_ID),
    ]
    assert [e.request for e in examples] == [b"GET /pay?card=1 HTTP/1.1", *[b"GET / HTTP/1.1"] * 2]
    assert kept.event == Event.ENTRY
    counts = watched.counts()
    assert (counts.seen, counts.kept) == ((0, 7, 0, 0), (0, 1, 0, 0))
    assert (counts.reverse, counts.reverse_traced) == ((0, 7, 0, 0), (0, 3, 0, 0))


def test_a_change_of_the_rate_leaves_the_wish_for_examples(watched: Watched) -> None:
    watched.table.want_examples(watched.row, True)
    watched.set(abi.encode_word(0))
    a, b = socket.socketpair()
    with a, b:
        a.send(REQUEST)
        b.recv(4096)
    assert [entry.event for entry in watched.entries(1)] == [Event.EXAMPLE]
