"""Records of the ring buffer as entries."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spandial import abi
from spandial.abi import EntryKind, Event, Parent, Protocol
from spandial_agent.records.record import connection_of, decode_entry, is_entry, tgid_of
from tests.spandial_agent.records.making import record

_u64 = st.integers(0, (1 << 64) - 1)
_u32 = st.integers(0, (1 << 32) - 1)
_u16 = st.integers(0, (1 << 16) - 1)
_u8 = st.integers(0, 255)

# Half of the randomness's range is kept at 50 %.
HIT, MISS = abi.RANDOMNESS_MASK, 0


def test_a_record_is_decoded_field_by_field() -> None:
    entry = decode_entry(record(b"POST /pay?card=1 HTTP/1.1\r\nHost: x\r\n", trace_id=(1 << 64) | 2, span_id=3))
    assert entry.time_ns == 1_000_000_000
    assert (entry.tgid, entry.row, entry.kind) == (4711, 2, EntryKind.HTTP)
    assert entry.request.startswith(b"POST /pay")
    assert (entry.trace_id, entry.span_id) == ((1 << 64) | 2, 3)


@given(st.binary(max_size=2 * abi.ENTRY.size + abi.REQUEST_MAX))
def test_any_bytes_are_an_entry_or_a_value_error(data: bytes) -> None:
    with suppress(ValueError):
        decode_entry(data)


@given(st.tuples(*[_u64] * 8, _u32, _u32, _u8, _u8, _u8, _u8, _u32, _u16, _u16, _u32, _u32), st.binary(max_size=300))
def test_any_fields_are_an_entry_or_a_value_error(fields: tuple[int, ...], request: bytes) -> None:
    kind, parent, protocol, event = fields[10:14]
    try:
        entry = decode_entry(abi.ENTRY.pack(*fields) + request)
    except ValueError:
        assert kind >= len(EntryKind) or parent >= len(Parent) or protocol >= len(Protocol) or event >= len(Event)
    else:
        assert (entry.kind, entry.parent) == (kind, parent)
        assert entry.request == request[: fields[-4]]


@pytest.mark.parametrize("size", [0, 1, abi.ENTRY.size - 1])
def test_a_record_that_is_too_short_says_so(size: int) -> None:
    with pytest.raises(ValueError, match=f"not {size}"):
        decode_entry(bytes(size))


def test_bytes_past_the_length_are_not_the_requests() -> None:
    data = record(b"GET /a HTTP/1.1\r\n")
    cut = abi.ENTRY.pack(*abi.ENTRY.unpack_from(data)[:-4], 6, 0, 0, 0) + data[abi.ENTRY.size :]
    assert decode_entry(cut).request == b"GET /a"
    shorter = abi.ENTRY.pack(*abi.ENTRY.unpack_from(data)[:-4], 5, 0, 0, 0) + data[abi.ENTRY.size :]
    assert decode_entry(shorter).request == b"GET /"


def test_what_is_read_of_a_record_that_is_not_decoded_is_what_it_says() -> None:
    data = record(tgid=4711, connection=1 << 60, event=Event.ANSWER)
    assert (tgid_of(data), connection_of(data), is_entry(data)) == (4711, 1 << 60, False)
    assert (tgid_of(b"short"), connection_of(b"short"), is_entry(b"short")) == (0, 0, False)
