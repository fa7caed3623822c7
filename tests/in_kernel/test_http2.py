"""HTTP/2 requests and gRPC calls in any shape are counted, told apart and decided by their trace context."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from hpack import Encoder, HeaderTuple, NeverIndexedHeaderTuple
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spandial import abi
from spandial.abi import RANDOMNESS_MASK, EntryKind, Event, Mode, Parent, Protocol, RecordFlag
from spandial.decision import decide
from spandial_agent.records.record import Entry
from tests.agent_process import eventually
from tests.in_kernel.conftest import Watched
from tests.in_kernel.test_databases import Pair, chunks

pytestmark = pytest.mark.kernel

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADERS, DATA, CONTINUATION = 1, 0, 9
END_STREAM, END_HEADERS, PADDED, PRIORITY = 1, 4, 8, 32
Field = tuple[str, str]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack("!I", len(payload))[1:] + bytes([kind, flags]) + struct.pack("!I", stream) + payload


SETTINGS, WINDOW, PING = frame(4, 0, 0, bytes(6)), frame(8, 0, 0, b"\0\0\1\0"), frame(6, 0, 0, bytes(8))


class Client:
    """What a client sends on one connection."""

    def __init__(self, *, huffman: bool = False, grpc: bool = True) -> None:
        self.encoder = Encoder()
        self.huffman = huffman
        self.grpc = grpc
        self.stream = -1

    def block(self, *more: Field, never: bool = False, path: str = "/shop.Orders/Get", method: str = "POST") -> bytes:
        fields = [(":method", method), (":scheme", "http"), (":path", path), (":authority", "shop")]
        fields += [("content-type", "application/grpc" if self.grpc else "application/json"), ("te", "trailers")]
        make = NeverIndexedHeaderTuple if never else HeaderTuple
        return self.encoder.encode([HeaderTuple(*f) for f in fields] + [make(*f) for f in more], huffman=self.huffman)

    def request(self, *more: Field, data: bytes = b"\0\0\0\0\3abc", **how: Any) -> bytes:
        self.stream += 2
        block = self.block(*more, **how)
        return frame(HEADERS, END_HEADERS, self.stream, block) + frame(DATA, END_STREAM, self.stream, data)


def traceparent(trace_id: int, sampled: bool) -> Field:
    return ("traceparent", f"00-{trace_id:032x}-b7ad6b7169203331-{int(sampled):02x}")


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


def counted(watched: Watched) -> tuple[int, ...]:
    """Requests received, which are entries, of HTTP and gRPC; and the calls sent."""
    counts = watched.counts()
    return tuple(of[kind] for of in (counts.seen, counts.reverse) for kind in (EntryKind.HTTP, EntryKind.GRPC))


@pytest.mark.parametrize("huffman", [False, True])
@pytest.mark.parametrize("grpc", [False, True])
def test_grpc_calls_and_other_requests_are_told_apart(watched: Watched, pair: Pair, grpc: bool, huffman: bool) -> None:
    client = Client(grpc=grpc, huffman=huffman)
    pair.send(PREFACE + SETTINGS, WINDOW, *(client.request() for _ in range(20)), PING)
    assert counted(watched) == ((0, 20, 0, 20) if grpc else (20, 0, 20, 0))


@pytest.mark.parametrize("size", [1, 2, 5, 9, 10, 64, 1000, 1 << 20])
def test_frames_may_be_split_anywhere(watched: Watched, pair: Pair, size: int) -> None:
    client = Client()
    data = PREFACE + SETTINGS + b"".join(client.request(("x-number", str(n))) + WINDOW for n in range(30))
    pair.send(data[: len(PREFACE)])
    pair.send(*(data[at : at + size] for at in range(len(PREFACE), len(data), size)))
    assert counted(watched) == (0, 30, 0, 30)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 20_000), max_size=30), gather=st.booleans())
def test_any_cuts_leave_count_and_decision_as_they_are(watched: Watched, cuts: list[int], gather: bool) -> None:
    watched.set(abi.encode_word(50, Mode.STRICT))
    bits = random.Random(7)
    trace_ids = [bits.getrandbits(128) for _ in range(20)]
    client = Client(huffman=bits.random() < 0.5)
    data = SETTINGS + b"".join(client.request(traceparent(trace_id, False)) for trace_id in trace_ids)
    before = watched.counts()
    pair = Pair()
    pair.send(PREFACE)
    parts = chunks(data, cuts)
    if gather:
        pair.drain(pair.server, pair.client.sendmsg(parts))
    else:
        pair.send(*parts)
    pair.close()
    after = watched.counts()
    kept = sum(trace_id & RANDOMNESS_MASK >= 1 << 55 for trace_id in trace_ids)
    assert after.seen_traced[EntryKind.GRPC] - before.seen_traced[EntryKind.GRPC] == 20
    assert after.kept[EntryKind.GRPC] - before.kept[EntryKind.GRPC] == kept


@pytest.mark.parametrize("never", [False, True], ids=["indexed", "never indexed"])
@pytest.mark.parametrize("huffman", [False, True], ids=["plain", "huffman"])
@pytest.mark.parametrize("mode", Mode)
def test_the_trace_context_decides(watched: Watched, pair: Pair, mode: Mode, huffman: bool, never: bool) -> None:
    word = abi.encode_word(40, mode, emit=True)
    watched.set(word)
    bits = random.Random(11)
    client = Client(huffman=huffman)
    pair.send(PREFACE)
    expected = []
    for _ in range(200):
        trace_id, sampled = bits.getrandbits(128), bits.random() < 0.5
        pair.send(client.request(traceparent(trace_id, sampled), ("grpc-timeout", "1S"), never=never))
        parent = Parent.REMOTE_KEPT if sampled else Parent.REMOTE_DROPPED
        if decide(word, trace_id & RANDOMNESS_MASK, parent):
            expected.append((trace_id, parent))
    counts = watched.counts()
    assert (counts.seen_traced[EntryKind.GRPC], counts.kept_traced[EntryKind.GRPC]) == (200, len(expected))

    def kept() -> list[Entry]:
        return [entry for entry in watched.emitted() if entry.event == Event.ENTRY]

    eventually(lambda: len(kept()) >= len(expected), "all kept entries")
    assert [(entry.trace_id, entry.parent) for entry in kept()] == expected
    assert all(entry.span_id == 0xB7AD6B7169203331 for entry in kept())


def test_explicit_randomness_decides(watched: Watched, pair: Pair) -> None:
    watched.set(abi.encode_word(50, Mode.STRICT))
    client = Client()
    pair.send(PREFACE)
    for trace_id, randomness in ((RANDOMNESS_MASK, 0), (1, RANDOMNESS_MASK)):
        before = watched.counts().kept[EntryKind.GRPC]
        pair.send(client.request(traceparent(trace_id, False), ("tracestate", f"a=b,ot=th:8;rv:{randomness:014x}")))
        assert watched.counts().kept[EntryKind.GRPC] - before == (randomness > 0)


def test_a_huffman_coded_tracestate_is_left_undecided(watched: Watched, pair: Pair) -> None:
    client = Client(huffman=True)
    pair.send(PREFACE, client.request(traceparent(1, True), ("tracestate", "ot=rv:ffffffffffffff")))
    (entry,) = watched.entries(1)
    assert (entry.trace_id, entry.flags) == (1, RecordFlag.FRESH | RecordFlag.UNDECIDED)


def test_padding_priority_and_continuation_are_no_part_of_the_block(watched: Watched, pair: Pair) -> None:
    watched.set(abi.encode_word(50, Mode.STRICT))
    client = Client()
    pair.send(PREFACE)
    for number, trace_id in enumerate([RANDOMNESS_MASK, 1, RANDOMNESS_MASK - 1]):
        block = client.block(traceparent(trace_id, False))
        parts = [block[:20], block[20:21], b"", block[21:]]
        first = bytes([9]) + struct.pack("!IB", 3, 200) + parts[0] + bytes(9)
        frames = [frame(HEADERS, PADDED | PRIORITY, 2 * number + 1, first)]
        frames += [frame(CONTINUATION, 0, 2 * number + 1, part) for part in parts[1:3]]
        frames += [frame(CONTINUATION, END_HEADERS, 2 * number + 1, parts[3])]
        pair.send(*frames)
    counts = watched.counts()
    assert (counts.seen_traced[EntryKind.GRPC], counts.kept[EntryKind.GRPC]) == (3, 2)


def test_trailers_are_no_request(watched: Watched, pair: Pair) -> None:
    client = Client()
    request = client.request()
    trailers = frame(HEADERS, END_HEADERS | END_STREAM, client.stream, client.encoder.encode([("x-sum", "1")]))
    pair.send(PREFACE, request + trailers)
    assert counted(watched) == (0, 1, 0, 1)


def test_responses_are_no_requests(watched: Watched, pair: Pair) -> None:
    client, server = Client(), Encoder()
    pair.send(PREFACE, client.request())
    pair.answer(SETTINGS + frame(HEADERS, END_HEADERS, 1, server.encode([(":status", "200")])))
    assert counted(watched) == (0, 1, 0, 1)


def test_kept_entries_carry_their_blocks_and_the_others_what_they_changed(watched: Watched, pair: Pair) -> None:
    client = Client()
    blocks = []
    encode = client.block

    def keep_block(*more: Field, **how: Any) -> bytes:
        blocks.append(encode(*more, **how))
        return blocks[-1]

    client.block = keep_block  # type: ignore[method-assign]
    word = abi.encode_word(0, Mode.FOLLOW, emit=True)
    watched.set(word)
    pair.send(PREFACE, client.request(), client.request(), client.request(traceparent(7, True)))
    changed, kept = watched.entries(2)
    assert (changed.event, changed.protocol, changed.stream, changed.request) == (
        Event.BLOCK,
        Protocol.HTTP2,
        1,
        blocks[0],
    )
    assert (kept.event, kept.kind, kept.stream, kept.request) == (Event.ENTRY, EntryKind.GRPC, 5, blocks[2])
    assert (changed.flags, kept.flags) == (RecordFlag.FRESH, 0)


def test_changes_that_were_not_handed_over_are_told(watched: Watched, pair: Pair) -> None:
    client = Client()
    watched.set(abi.encode_word(0))
    pair.send(PREFACE, client.request(), client.request(("x", "1")))
    watched.set(abi.encode_word(100, emit=True))
    pair.send(client.request(), client.request())
    first, second = watched.entries(2)
    assert (first.flags, second.flags) == (RecordFlag.GAP, 0)


def test_a_trace_context_that_is_sent_again_is_known(watched: Watched, pair: Pair) -> None:
    watched.set(abi.encode_word(50, Mode.STRICT, emit=True))
    client = Client()
    again = traceparent(RANDOMNESS_MASK, True)
    pair.send(PREFACE, client.request(again), client.request(again), client.request(again, ("x", "1")))
    entries = watched.entries(3)
    assert [entry.trace_id for entry in entries] == [RANDOMNESS_MASK] * 3
    assert watched.counts().kept_traced[EntryKind.GRPC] == 3


def test_a_trace_context_that_the_table_alone_knows_is_left_undecided(watched: Watched, pair: Pair) -> None:
    client = Client()
    first, second = traceparent(7, True), traceparent(8, True)
    pair.send(PREFACE, client.request(first), client.request(second), client.request(first))
    *_, last = watched.entries(3)
    assert (last.event, last.trace_id) == (Event.ENTRY, 0)
    assert last.flags == RecordFlag.UNDECIDED
    assert watched.counts().seen[EntryKind.GRPC] == 3
    assert watched.counts().kept[EntryKind.GRPC] == 2


def test_a_connection_that_was_there_before_is_found(watched: Watched) -> None:
    client = Client()
    known = PREFACE + SETTINGS + client.request()
    assert known
    pair = Pair()
    pair.send(WINDOW, client.request(), client.request(), PING + client.request())
    pair.close()
    assert sum(counted(watched)[:2]) == 3
    assert all(not entry.flags & RecordFlag.FRESH for entry in watched.entries(3))


def test_a_block_longer_than_what_is_looked_at_is_cut(watched: Watched, pair: Pair) -> None:
    client = Client()
    pair.send(PREFACE, client.request(("x-long", "y" * 3000)), client.request())
    first, second = watched.entries(2)
    assert first.flags == RecordFlag.FRESH | RecordFlag.CUT | RecordFlag.UNDECIDED
    assert second.flags == 0
    assert counted(watched) == (0, 2, 0, 2)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(noise=st.lists(st.binary(min_size=1, max_size=300), max_size=8), framed=st.booleans())
def test_noise_never_harms(watched: Watched, noise: list[bytes], framed: bool) -> None:
    pair = Pair()
    parts = [frame(HEADERS, END_HEADERS, 2 * n + 1, part) for n, part in enumerate(noise)] if framed else noise
    pair.send(PREFACE, *parts)
    pair.close()
    before = counted(watched)
    fresh = Pair()
    fresh.send(PREFACE, Client().request())
    fresh.close()
    assert counted(watched) == (before[0], before[1] + 1, before[2], before[3] + 1)
