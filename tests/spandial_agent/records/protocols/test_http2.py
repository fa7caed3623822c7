"""Header blocks of HTTP/2: what is told is what was sent, whatever the capture missed."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import NamedTuple

import pytest
from hpack import Decoder, Encoder, HPACKDecodingError, InvalidTableIndexError, InvalidTableSizeError
from hpack.hpack import encode_integer
from hpack.table import HeaderTable
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from spandial_agent.records.protocols.http2 import HeaderBlocks, Headers, Request, Response, read_request, read_response

Field = tuple[str, str, bool]  # name, value, sensitive

NOTHING = Headers((), 0, complete=False)

# What clients and servers sent, one block after the other on one connection.
GRPC_CALLS = (  # grpcio 1.85 (C-core): no Huffman coding, traceparent without indexing and under a literal name
    b"@\x05:path\x14/shop.v1.Cart/Remove@\n:authority\x0f127.0.0.1:37069\x83\x86@\x0ccontent-type\x10application/grpc"
    b"@\x02te\x08trailers@\x14grpc-accept-encoding\x17identity, deflate, gzip@\x0cgrpc-timeout\x054990m"
    b"@\nuser-agent0grpc-python/1.85.1 grpc-c/58.0.0 (linux; chttp2)"
    b"\x00\x0btraceparent700-394ea31537d56c2ae1e5abf94e34683b-2d5261c7e16b462a-01",
    b"@\x05:path\x11/shop.v1.Cart/Add\xc4\x83\x86\xc3\xc2\xc1@\x0cgrpc-timeout\x025S\xc0"
    b"\x00\x0btraceparent700-f8a9b236882300ce1f6cd992af354293-ac9e49c0930bf2e8-01",
    b"\xbf\xc5\x83\x86\xc4\xc3\xc2@\x0cgrpc-timeout\x055010m\xc1"
    b"\x00\x0btraceparent700-e94237076bed15cb3bc1e55407a731a1-d0b15a98f4a2b468-01",
    b"\xc7\xc6\x83\x86\xc5\xc4\xc3\xbe\xc1\x00\x0btraceparent700-c2fc1c88ea2ac0147f567ee48a70e363-b2358fad078e304c-01"
    b"\x00\ntracestate\x19ot=th:8;rv:5d748fce16f92a",
    b"\xc0\xc6\x83\x86\xc5\xc4\xc3\xc1\x00\x08x-tenant\x04blue",
)
GRPC_ANSWERS = (
    b"\x88@\x0ccontent-type\x10application/grpc@\x14grpc-accept-encoding\x17identity, deflate, gzip"
    b"\x00\x0bx-served-by\x01a",
    b"@\x0bgrpc-status\x010\x00\x0cgrpc-message\x00",
    b"\x88\xc0@\x0bgrpc-status\x015\x00\x0cgrpc-message\rno such thing",
)
NODE_REQUESTS = tuple(  # Node 20 (nghttp2): Huffman coding, traceparent inserted, then under its name's index
    bytes.fromhex(block)
    for block in (
        "048b61139eb6083b13fe1a480182418b089d5c0b8170dc65c032ef8640884d83216b1d85a93fa7001670120a479b6c1191e9641002d0a5"
        "04646c51cb1ba465c59975d23d238e48e38ebaf48558017a89a8f215644e7ad80ae0",
        "048b61139eb6083b13fe1a480382c0867f00a700168d9924680e3c57192caf81b6a46cac86595a64a21b816d66657992b246c92924201b"
        "12c00fbf",
        "048b61139eb6083b13fe1a480582c1867ea7001675923c275a71c146304ae3c01b5280318072840568b1acd3cc89f8c6fb92c810352916"
        "007fc0",
        "048b61139eb6083b13fe1a481982c2867ea7001679e20a52b92b251bcf3ae332b217658e300dc1b451b8f2c26d9291c185f96323cdbe15"
        "801fc1",
        "048761139eb6083b1382c3867ea700166c8fbd1b437d97800238408471c6208c4f3ae46e3ac9561bafbe096565c0ba26df6595801f4087"
        "4d83215091a4bf853a604cf71ec3",
        "048761139eb6083b1382c586bfbec3",  # traceparent and tracestate of the last one again
        "048761139eb6083b1382c5861f30a700168c8e006ccb2ba57892bc074adcad0cad323109c0baf32b00822cb2864942db32491956007f1f"
        "0886ba51d85b14f31f1103613d62c3",  # a traceparent that was called sensitive is never indexed
    )
)
NGHTTP_REQUEST = bytes.fromhex(  # nghttp --encoder-header-table-size=128: a size update, an entry too large to insert
    "3f61820487606c47fe79803f86418b089d5c0b8170dc65d7c01f53032a2f2a907a8aaa69d29ac4c0576c4b8300884d83216b1d85a93fa70016"
    "211f6c0cb2e3ee819246376378628cad38264af34f11d58417a51b8524723cf46065f5801f"
)


class Sent(NamedTuple):
    block: bytes
    fields: list[tuple[str, str] | None]  # None: refers to an entry that the reader missed
    ends: list[int]  # of the fields within the block
    insertions: int
    resized: bool


class Sender:
    """hpack's encoder, and which entries of its table a reader missed (told by identity: they may be equal)."""

    def __init__(self) -> None:
        self.encoder = Encoder()
        self.table = self.encoder.header_table
        self.missed: list[tuple[bytes, bytes]] = []

    def send(self, fields: list[Field], huffman: bool) -> Sent:
        sent = Sent(b"", [], [], 0, self.table.resized)
        for name, value, sensitive in fields:
            index, _, equal = self.table.search(name.encode(), value.encode()) or (0, b"", None)
            position = index - HeaderTable.STATIC_TABLE_LENGTH - 1
            missed = position >= 0 and self._is_missed(self.table.dynamic_entries[position])
            block = sent.block + self.encoder.encode([(name, value, sensitive)], huffman)
            inserted = not sensitive and equal is None
            if inserted and missed and self.table.dynamic_entries:
                self.missed.append(self.table.dynamic_entries[0])  # its name is missed
            sent.fields.append(None if missed else (name, value))
            sent.ends.append(len(block))
            sent = sent._replace(block=block, insertions=sent.insertions + inserted)
        return sent

    def send_unseen(self, fields: list[Field], huffman: bool) -> Sent:
        before = list(self.table.dynamic_entries)
        sent = self.send(fields, huffman)
        self.missed += [new for new in self.table.dynamic_entries if not any(new is old for old in before)]
        return sent

    def miss_all(self) -> None:
        self.missed = list(self.table.dynamic_entries)

    def resize(self, size: int) -> None:
        if size != self.encoder.header_table_size:  # to set the same size again would drop the update that is due
            self.encoder.header_table_size = size

    def _is_missed(self, entry: tuple[bytes, bytes]) -> bool:
        return any(entry is missed for missed in self.missed)


def told(sent: Sent, cut_at: int | None = None) -> Headers:
    fields = [field for field, end in zip(sent.fields, sent.ends) if cut_at is None or end <= cut_at]
    known = tuple(field for field in fields if field)
    return Headers(known, len(fields) - len(known), complete=cut_at is None)


_names = st.sampled_from([":path", "content-type", "traceparent", "a-long-name" * 3])
_values = st.sampled_from(["", "/", "application/grpc", "00-1", "w" * 900]) | st.text("abcü\x00", max_size=9)
_fields = st.lists(st.tuples(_names, _values, st.sampled_from([False, False, False, True])), max_size=8)
_sizes = st.sampled_from([0, 64, 200, 1000, 4096, 2**16, 2**20])


def attach_anew(_: HeaderBlocks) -> HeaderBlocks:
    return HeaderBlocks(fresh=False)


def skip_uncounted(blocks: HeaderBlocks) -> HeaderBlocks:
    blocks.skip(None)
    return blocks


def see_a_cut_block(blocks: HeaderBlocks) -> HeaderBlocks:
    assert blocks.decode(b"", cut=True) == NOTHING
    return blocks


def see_blocks_that_break_the_rules(blocks: HeaderBlocks) -> HeaderBlocks:
    for block in (b"\x80", b"\x82\x20", b"\x40\x01a\x81\x00", b"\xff" * 9):
        assert blocks.decode(block) == blocks.decode(block, cut=True) == NOTHING
    for block in (b"\x40\x7f", b"\x82\x83\x04", b"\x82\xff\xff"):
        assert blocks.decode(block) == NOTHING
    return blocks


WAYS_TO_LOSE_TRACK = [attach_anew, skip_uncounted, see_a_cut_block, see_blocks_that_break_the_rules]


class Capture(RuleBasedStateMachine):
    """A connection whose blocks are seen, cut, skipped and spoilt; the capture attaches again and again."""

    @initialize(fields=_fields, huffman=st.booleans(), fresh=st.booleans())
    def begin(self, fields: list[Field], huffman: bool, fresh: bool) -> None:
        self.sender = Sender()
        self.blocks = HeaderBlocks(fresh=fresh)
        if not fresh:
            self.sender.send_unseen(fields, huffman)

    @rule(fields=_fields, huffman=st.booleans())
    def see(self, fields: list[Field], huffman: bool) -> None:
        sent = self.sender.send(fields, huffman)
        assert self.blocks.decode(sent.block) == told(sent)

    @rule(fields=_fields, huffman=st.booleans(), data=st.data())
    def see_a_part(self, fields: list[Field], huffman: bool, data: st.DataObject) -> None:
        sent = self.sender.send(fields, huffman)
        cut_at = data.draw(st.integers(0, len(sent.block)))
        assert self.blocks.decode(sent.block[:cut_at], cut=True) == told(sent, cut_at)
        self.sender.miss_all()

    @rule(fields=_fields, huffman=st.booleans())
    def skip(self, fields: list[Field], huffman: bool) -> None:
        sent = self.sender.send_unseen(fields, huffman)
        self.blocks.skip(None if sent.resized else sent.insertions)
        if sent.resized:
            self.sender.miss_all()

    @rule(size=_sizes)
    def resize(self, size: int) -> None:
        self.sender.resize(size)

    @rule(lose=st.sampled_from(WAYS_TO_LOSE_TRACK))
    def lose_track(self, lose: Callable[[HeaderBlocks], HeaderBlocks]) -> None:
        self.blocks = lose(self.blocks)
        self.sender.miss_all()


TestCapture = Capture.TestCase
TestCapture.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


@settings(deadline=None)
@given(st.lists(st.tuples(_fields, st.none() | _sizes), max_size=8), st.booleans())
def test_wherever_the_capture_attaches_only_what_it_missed_is_unknown(
    connection: list[tuple[list[Field], int | None]], huffman: bool
) -> None:
    for attached_at in range(len(connection) + 1):
        sender, blocks = Sender(), HeaderBlocks(fresh=attached_at == 0)
        for position, (fields, size) in enumerate(connection):
            if size is not None:
                sender.resize(size)
            if position < attached_at:
                sender.send_unseen(fields, huffman)
            else:
                sent = sender.send(fields, huffman)
                assert blocks.decode(sent.block) == told(sent)


def integer(number: int, prefix: int, pattern: int) -> bytes:
    octets = encode_integer(number, prefix)
    octets[0] |= pattern
    return bytes(octets)


def string(octets: bytes, huffman: bool) -> bytes:
    text = Encoder().huffman_coder.encode(octets) if huffman else octets
    return integer(len(text), 7, 0x80 if huffman else 0) + text


_indices = st.integers(0, 70) | st.sampled_from([126, 127, 128, 2**14, 2**34])
_strings = st.builds(string, st.binary(max_size=9) | st.just(b"v" * 900), st.booleans())
_literals = st.builds(
    lambda kind, index, name, value: integer(index, *kind) + (b"" if index else name) + value,
    st.sampled_from([(6, 0x40), (4, 0x10), (4, 0x00)]),
    _indices,
    _strings,
    _strings,
)
_indexed = st.builds(lambda index: integer(index, 7, 0x80), _indices)
_updates = st.builds(lambda size: integer(size, 5, 0x20), _sizes)
_blocks = st.builds(
    lambda updates, fields, rest: b"".join(updates + fields) + rest,
    st.lists(_updates, max_size=2),
    st.lists(_literals | _indexed, max_size=8),
    st.just(b"") | st.binary(max_size=4),
)


@given(st.lists(_blocks, max_size=6))
def test_seen_from_the_beginning_it_agrees_with_the_library(connection: list[bytes]) -> None:
    decoder, blocks = Decoder(), HeaderBlocks(fresh=True)
    decoder.max_allowed_table_size = 2**13
    for block in connection:
        headers = blocks.decode(block)
        try:
            fields = decoder.decode(block, raw=True)
        except InvalidTableIndexError:
            assert headers.unknown or headers == NOTHING
            return
        except InvalidTableSizeError:
            return
        except HPACKDecodingError:
            assert headers == NOTHING
            return
        texts = [(text(name.lower()), text(value)) for name, value in fields]
        assert headers == Headers(tuple(texts), 0, complete=True)


def text(octets: bytes) -> str:
    return octets.decode("utf-8", "backslashreplace")


@given(
    st.lists(st.tuples(st.binary(max_size=1024) | _blocks, st.booleans(), st.none() | st.integers(-9, 2**40))),
    st.booleans(),
)
@example([(b"", False, 0), (b"", True, None), (b"\x3f" + b"\xff" * 1023, True, 2**64)], True)
def test_no_bytes_make_it_raise(connection: list[tuple[bytes, bool, int | None]], fresh: bool) -> None:
    blocks = HeaderBlocks(fresh=fresh)
    for block, cut, skipped in connection:
        headers = blocks.decode(block, cut=cut)
        assert len(headers.fields) + headers.unknown <= len(block)
        assert not (headers.complete and cut)
        read_request(headers)
        read_response(headers)
        blocks.skip(skipped)


@pytest.mark.parametrize("value_length", [0, 60, 900])
def test_its_memory_is_bounded(value_length: int) -> None:
    blocks = HeaderBlocks(fresh=True)
    blocks.decode(integer(2**32, 5, 0x20))
    tracemalloc.start()
    try:
        for number in range(4000):
            value = b"%08d" % number + bytes(value_length)
            assert blocks.decode(b"\x40\x00" + string(value, False)).complete
        blocks.skip(2**32)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 2**19


def test_of_a_table_larger_than_is_kept_the_newest_entries_are_known() -> None:
    blocks = HeaderBlocks(fresh=True)
    blocks.decode(integer(2**20, 5, 0x20))
    values = [f"{number:0992}" for number in range(200)]
    for value in values:
        blocks.decode(b"\x5f" + string(value.encode(), False))  # content-type, incremental: 32 + 12 + 992 bytes
    newest_first = [blocks.decode(integer(62 + age, 7, 0x80)) for age in range(200)]
    assert newest_first[:7] == [Headers((("content-type", value),), 0, True) for value in values[: -7 - 1 : -1]]
    assert set(newest_first[7:]) == {Headers((), 1, True)}


@pytest.mark.parametrize("lose_track", WAYS_TO_LOSE_TRACK)
def test_while_the_table_size_is_unknown_entries_are_kept_as_if_it_were_large(
    lose_track: Callable[[HeaderBlocks], HeaderBlocks],
) -> None:
    blocks = HeaderBlocks(fresh=True)
    blocks.decode(integer(64, 5, 0x20) + b"\x40\x01a\x01b")
    blocks = lose_track(blocks)
    blocks.decode(b"\x40\x01c\x01d" + (b"\x5f" + string(b"v" * 900, False)) * 7)
    assert blocks.decode(b"\xc5\xc6") == Headers((("c", "d"),), 1, True)
    blocks.decode(b"\x3f\xe1\x1f")  # 4,096 bytes
    assert blocks.decode(b"\xc1\xc2") == Headers((("content-type", "v" * 900),), 1, True)


def test_of_a_cut_block_the_table_size_is_known_but_not_the_entries() -> None:
    blocks = HeaderBlocks(fresh=True)
    cut = integer(100, 5, 0x20) + b"\x40\x01a\x01b" + b"\x40\x01"
    assert blocks.decode(cut, cut=True) == Headers((("a", "b"),), 0, False)
    assert blocks.decode(b"\x40\x01c\x01d\x40\x01e\x01f" + b"\xbe\xbf\xc0").unknown == 1
    blocks.decode(b"\x5f" + string(b"v" * 50, False))  # 94 bytes: no other entry fits into 100
    assert blocks.decode(b"\xbe\xbf") == Headers((("content-type", "v" * 50),), 1, True)


def test_skipped_insertions_are_counted() -> None:
    blocks = HeaderBlocks(fresh=True)
    blocks.decode(b"\x40\x01a\x01b")
    blocks.skip(2)
    assert blocks.decode(b"\x40\x01c\x01d\xbe\xbf\xc0\xc1") == Headers((("c", "d"), ("c", "d"), ("a", "b")), 2, True)
    blocks.skip(0)
    assert blocks.decode(b"\xbe\xc1") == Headers((("c", "d"), ("a", "b")), 0, True)


def test_a_block_that_repeats_a_large_entry_does_not_become_huge() -> None:
    blocks = HeaderBlocks(fresh=True)
    blocks.decode(b"\x5f" + string(b"v" * 1000, False))
    headers = blocks.decode(b"\xbe" * 1000)
    assert len(headers.fields) == 2**16 // (32 + 12 + 1000)
    assert len(headers.fields) + headers.unknown == 1000


def test_a_value_is_not_told_without_its_name() -> None:
    blocks = HeaderBlocks(fresh=False)
    unknown_name = integer(70, 6, 0x40) + string(b"value", False)
    assert blocks.decode(unknown_name) == Headers((), 1, True)
    assert blocks.decode(b"\xbe") == Headers((), 1, True)  # nor the entry that it became
    assert blocks.decode(b"\x40\x01a\x01b\xbe\xbf\xc0") == Headers((("a", "b"), ("a", "b")), 2, True)


def test_an_entry_larger_than_the_table_empties_it() -> None:
    """RFC 7541, section 4.4: what comes next is at index 62 all the same."""
    blocks = HeaderBlocks(fresh=True)
    blocks.decode(
        integer(64, 5, 0x20) + b"\x40\x01a\x01b" + b"\x40\x01c" + string(b"d" * 64, False) + b"\x40\x01e\x01f"
    )
    assert blocks.decode(b"\xbe\xbf") == Headers((("e", "f"),), 1, True)


def test_names_are_lower_case_and_no_bytes_are_lost() -> None:
    headers = HeaderBlocks(fresh=True).decode(b"\x00\x03X-A\x03\xc3\xbc\xff")
    assert headers.fields == (("x-a", "ü\\xff"),)


def test_calls_of_grpc() -> None:
    blocks = HeaderBlocks(fresh=True)
    calls = [read_request(blocks.decode(block)) for block in GRPC_CALLS]
    assert calls[0] == Request(
        method="POST",
        path="/shop.v1.Cart/Remove",
        path_known=True,
        authority="127.0.0.1:37069",
        scheme="http",
        content_type="application/grpc",
        grpc=True,
        service="shop.v1.Cart",
        rpc_method="Remove",
        traceparent="00-394ea31537d56c2ae1e5abf94e34683b-2d5261c7e16b462a-01",
        tracestate="",
        user_agent="grpc-python/1.85.1 grpc-c/58.0.0 (linux; chttp2)",
    )
    assert [call.rpc_method for call in calls] == ["Remove", "Add", "Add", "Remove", "Add"]
    assert [call.traceparent[:5] for call in calls] == ["00-39", "00-f8", "00-e9", "00-c2", ""]
    assert calls[3].tracestate == "ot=th:8;rv:5d748fce16f92a"
    assert [call[3:8] for call in calls] == [calls[0][3:8]] * 5  # authority, scheme, content type, gRPC, service


def test_of_grpc_calls_that_began_earlier_the_trace_context_is_known_and_the_path_once_it_is_sent_anew() -> None:
    blocks = HeaderBlocks(fresh=False)
    calls = [read_request(blocks.decode(block)) for block in GRPC_CALLS[1:]]
    assert [call.path for call in calls] == ["/shop.v1.Cart/Add", "/shop.v1.Cart/Add", "", "/shop.v1.Cart/Add"]
    assert [call.path_known for call in calls] == [True, True, False, True]
    assert [call.traceparent[:5] for call in calls] == ["00-f8", "00-e9", "00-c2", ""]
    assert {call.grpc for call in calls} == {None}  # the content type is an entry of the first call


def test_answers_of_grpc() -> None:
    blocks = HeaderBlocks(fresh=True)
    answers = [read_response(blocks.decode(block)) for block in GRPC_ANSWERS]
    assert answers == [Response(200, None), Response(None, 0), Response(200, 5)]


def test_requests_of_node() -> None:
    blocks = HeaderBlocks(fresh=True)
    requests = [read_request(blocks.decode(block)) for block in NODE_REQUESTS]
    assert requests[0] == Request(
        method="GET",
        path="/shop/cart",
        path_known=True,
        authority="127.0.0.1:36037",
        scheme="http",
        content_type="",
        grpc=False,
        service="",
        rpc_method="",
        traceparent="00-60d2d8550bc8fd20142f0bc52bfb7c36-377c8d66d66778de-01",
        tracestate="",
        user_agent="node-shop/1.0",
    )
    assert [request.traceparent[:5] for request in requests] == [
        "00-60",
        "00-b3",
        "00-73",
        "00-88",
        "00-5c",
        "00-5c",
        "00-bc",
    ]
    assert [request.tracestate for request in requests] == ["", "", "", "", "ot=th:8", "ot=th:8", ""]
    assert {request.user_agent for request in requests} == {"node-shop/1.0"}


def test_a_request_of_nghttp_with_a_small_table() -> None:
    request = read_request(HeaderBlocks(fresh=False).decode(NGHTTP_REQUEST))
    assert (request.path, request.traceparent[:5]) == ("/a/b", "00-cc")


def complete(*fields: tuple[str, str]) -> Headers:
    return Headers(fields, 0, complete=True)


@pytest.mark.parametrize(
    ("content_type", "grpc"),
    [
        ("application/grpc", True),
        ("application/grpc+proto", True),
        ("Application/GRPC;charset=utf-8", True),
        ("application/grpc ; x=y", True),
        ("application/grpc-web", False),
        ("application/grpc-web+proto", False),
        ("application/grpcx", False),
        ("application/json", False),
        ("", False),
    ],
)
def test_the_content_type_tells_grpc(content_type: str, grpc: bool) -> None:
    assert read_request(complete(("content-type", content_type))).grpc is grpc


def test_what_is_absent_is_known_only_if_all_is_known() -> None:
    fields = ((":method", "GET"),)
    known = read_request(Headers(fields, 0, complete=True))
    assert (known.grpc, known.path_known, known.path) == (False, True, "")
    for partly in (Headers(fields, 1, complete=True), Headers(fields, 0, complete=False), NOTHING):
        assert (read_request(partly).grpc, read_request(partly).path_known) == (None, False)


@pytest.mark.parametrize(
    ("path", "service", "method"),
    [
        ("/shop.v1.Cart/Add", "shop.v1.Cart", "Add"),
        ("/Cart/Add?x=y", "Cart", "Add"),
        ("/prefix/shop.v1.Cart/Add", "prefix/shop.v1.Cart", "Add"),
        ("/Add", "", ""),
        ("/Cart/", "", ""),
        ("//Add", "", ""),
        ("Cart/Add", "", ""),
        ("", "", ""),
    ],
)
def test_service_and_method_are_read_off_the_path(path: str, service: str, method: str) -> None:
    request = read_request(complete((":path", path), ("content-type", "application/grpc")))
    assert (request.service, request.rpc_method) == (service, method)
    other = read_request(complete((":path", path), ("content-type", "text/plain")))
    assert (other.service, other.rpc_method) == ("", "")


def test_the_first_of_equal_names_counts_but_tracestate_is_one_list() -> None:
    request = read_request(
        complete(
            ("traceparent", "1"), ("traceparent", "2"), ("tracestate", "a=1"), ("tracestate", "b=2"), ("host", "h")
        )
    )
    assert (request.traceparent, request.tracestate, request.authority) == ("1", "a=1,b=2", "h")


@pytest.mark.parametrize(
    ("status", "grpc_status", "expected"),
    [
        ("200", "0", Response(200, 0)),
        ("100", "16", Response(100, 16)),
        ("503", "17", Response(503, None)),
        ("099", "-1", Response(None, None)),
        ("", "", Response(None, None)),
        ("9" * 5000, "0" * 5000, Response(None, None)),
        ("٢٠٠", "٣", Response(None, None)),
        ("200\n", "0\n", Response(None, None)),
    ],
)
def test_statuses(status: str, grpc_status: str, expected: Response) -> None:
    assert read_response(complete((":status", status), ("grpc-status", grpc_status))) == expected
