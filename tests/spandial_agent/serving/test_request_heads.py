"""The heads of requests, read along in what a client of HTTP/2 sends."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hpack import Encoder
from hypothesis import given
from hypothesis import strategies as st

from spandial_agent.serving.request_heads import BLOCK_MAX, FRAME_MAX, OPEN_MAX, PREFACE, NotHttp2, RequestHeads
from tests.spandial_agent.serving.frames import frame

DATA, HEADERS, RST_STREAM, SETTINGS, CONTINUATION = 0, 1, 3, 4, 9
END_STREAM, END_HEADERS, PADDED, PRIORITY = 1, 4, 8, 0x20
FIELDS = [(":method", "POST"), (":authority", "127.0.0.1"), ("te", "trailers")]


def read(heads: RequestHeads, data: bytes, now: float = 1.0) -> list[tuple[int, dict[str, str]]]:
    """Where heads end in these bytes, and what they say."""
    found, at = [], 0
    while at < len(data):
        length, head = heads.take(data[at:], now)
        assert 0 < length <= len(data) - at
        at += length
        if head is not None:
            found.append((at, head))
    return found


@pytest.fixture
def heads() -> RequestHeads:
    heads = RequestHeads()
    assert read(heads, PREFACE + frame(SETTINGS, 0, 0, bytes(6))) == []
    assert heads.is_http2
    return heads


def block(fields: Sequence[tuple[str, str]] = FIELDS) -> bytes:
    return Encoder().encode(fields)


@given(st.data())
def test_however_it_comes_each_request_is_found_where_its_head_ends(data: st.DataObject) -> None:
    encoder, sent, ends, unfinished = Encoder(), PREFACE + frame(SETTINGS, 0, 0), [], set()
    numbers = data.draw(st.lists(st.integers(1, 40), max_size=8, unique=True))
    for number in numbers:
        stream, fields = 2 * number + 1, [*FIELDS, ("number", str(number))]
        encoded = encoder.encode(fields)
        cut = data.draw(st.integers(0, len(encoded)))
        pad = data.draw(st.binary(max_size=5))
        first = bytes([len(pad)]) + bytes(5) + encoded[:cut] + pad
        sent += frame(HEADERS, PADDED | PRIORITY, stream, first) + frame(
            CONTINUATION, END_HEADERS, stream, encoded[cut:]
        )
        ends.append((len(sent), str(number)))
        how = data.draw(st.sampled_from(["whole", "reset", "half"]))
        sent += frame(DATA, 0, stream, b"half")
        if how == "half":
            unfinished.add(stream)
        else:
            sent += frame(DATA, END_STREAM, stream, b"") if how == "whole" else frame(RST_STREAM, 0, stream, bytes(4))
    heads, at, found = RequestHeads(), 0, []
    while at < len(sent):
        piece = sent[at : at + data.draw(st.integers(1, len(sent)))]
        found += [(at + end, head["number"]) for end, head in read(heads, piece)]
        at += len(piece)
    assert found == ends
    assert set(heads.open) == unfinished
    assert heads.begun is None


@given(st.binary(max_size=200))
def test_whatever_comes_is_read_or_refused(sent: bytes) -> None:
    heads = RequestHeads()
    read(heads, PREFACE)
    try:
        read(heads, sent)
    except NotHttp2:
        pass


def test_who_begins_otherwise_is_no_client_of_http2() -> None:
    with pytest.raises(NotHttp2, match="does not begin"):
        RequestHeads().take(b"GET / HTTP/1.1", 1.0)


def test_it_is_known_since_when_something_is_waited_for(heads: RequestHeads) -> None:
    read(heads, frame(HEADERS, END_HEADERS, 1, block()), now=5.0)
    assert (heads.open, heads.begun) == ({1: 5.0}, None)
    read(heads, frame(DATA, END_STREAM, 1, b"xy")[:-1], now=6.0)
    assert (heads.open, heads.begun) == ({1: 5.0}, 6.0)
    read(heads, b"y", now=7.0)
    assert (heads.open, heads.begun) == ({}, None)
    read(heads, frame(HEADERS, 0, 3, block()), now=8.0)
    assert heads.begun == 8.0, "a block that is not whole"


def test_trailers_are_no_request(heads: RequestHeads) -> None:
    read(heads, frame(HEADERS, END_HEADERS, 1, block()))
    assert read(heads, frame(HEADERS, END_HEADERS | END_STREAM, 1, block([("x", "y")]))) == []
    assert heads.open == {}


@pytest.mark.parametrize(
    "sent",
    [
        frame(DATA, 0, 1, bytes(FRAME_MAX + 1)),
        frame(HEADERS, 0, 1, block()) + frame(DATA, 0, 1),
        frame(CONTINUATION, END_HEADERS, 1, block()),
        frame(HEADERS, 0, 1) + frame(CONTINUATION, 0, 1) * 17,
        frame(HEADERS, 0, 1, bytes(FRAME_MAX)) + frame(CONTINUATION, 0, 1, bytes(1)),
        frame(HEADERS, END_HEADERS | PADDED, 1),
        frame(HEADERS, END_HEADERS | PADDED, 1, b"\x05abc"),
        frame(HEADERS, END_HEADERS | PRIORITY, 1, b"abc"),
        frame(HEADERS, END_HEADERS, 1, b"\x80"),
        frame(HEADERS, END_HEADERS, 1, b"\x3f\xe1\xff\x03\x82"),  # a table of 64 KiB
        frame(HEADERS, END_HEADERS, 1, b"\x40\x01a\x7f\x81\x1e" + bytes(4000) + b"\xbe" * 12000),  # one field, often
        b"".join(frame(HEADERS, END_HEADERS, stream, b"\x83") for stream in range(1, 2 * OPEN_MAX + 2, 2)),
    ],
    ids=range(12),
)
def test_more_than_anybody_needs_is_refused(heads: RequestHeads, sent: bytes) -> None:
    assert BLOCK_MAX == FRAME_MAX
    with pytest.raises(NotHttp2):
        read(heads, sent)
