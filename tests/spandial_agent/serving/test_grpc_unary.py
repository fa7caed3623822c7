"""Unary calls of gRPC: what is a message, and how a call ends."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections import Counter
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spandial_agent.serving.grpc_unary import Code, Status, UnaryCalls
from spandial_agent.serving.http2 import Request, Response
from spandial_api.node import Connection
from spandial_api.peers import Peer

FIELDS = {":method": "POST", ":path": "/shop/Echo", ":authority": "127.0.0.1:1", "content-type": "application/grpc"}


async def echo(message: bytes, request: Request) -> bytes:
    if message == b"refuse":
        raise Status(Code.PERMISSION_DENIED, "100 % of it, naïvely\n")
    if message == b"fail":
        raise ZeroDivisionError
    return message


def answer(body: bytes, fields: Mapping[str, str] = FIELDS, **more: str) -> Response:
    calls = UnaryCalls({"/shop/Echo": echo}, (), Counter())
    request = Request({**fields, **more}, body, Peer("somebody"), Connection("127.0.0.1", 1, 2, "127.0.0.1", 3))
    return asyncio.run(calls.answer(request))


def framed(message: bytes, flag: bytes = b"\0") -> bytes:
    return flag + len(message).to_bytes(4, "big") + message


def code(response: Response) -> Code:
    assert bool(response.body) == (response.trailers["grpc-status"] == "0")
    return Code(int(response.trailers["grpc-status"]))


def test_a_message_is_answered_by_its_method() -> None:
    response = answer(framed(b"hello"))
    assert response.fields[":status"] == "200"
    assert (response.body, response.trailers) == (framed(b"hello"), {"grpc-status": "0"})


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_a_compressed_message_is_inflated_up_to_a_bound(encoding: str, compress: object) -> None:
    assert callable(compress)
    assert answer(framed(compress(b"hello"), b"\1"), **{"grpc-encoding": encoding}).body == framed(b"hello")
    allowed = framed(compress(bytes(16 << 10)), b"\1")
    assert answer(allowed, **{"grpc-encoding": encoding}).body == framed(bytes(16 << 10))
    for size in (1 + (16 << 10), 8 << 20):
        bomb = framed(compress(bytes(size)), b"\1")
        assert code(answer(bomb, **{"grpc-encoding": encoding})) is Code.RESOURCE_EXHAUSTED
    half = framed(compress(b"hello")[:-6], b"\1")
    assert code(answer(half, **{"grpc-encoding": encoding})) is Code.INTERNAL


def test_which_encodings_there_are_is_said() -> None:
    response = answer(framed(b"hello", b"\1"), **{"grpc-encoding": "snappy"})
    assert code(response) is Code.UNIMPLEMENTED
    assert response.fields["grpc-accept-encoding"] == "identity, gzip, deflate"
    assert code(answer(framed(b"hello", b"\1"))) is Code.INTERNAL
    assert code(answer(framed(b"hello", b"\1"), **{"grpc-encoding": "gzip"})) is Code.INTERNAL


@pytest.mark.parametrize("body", [b"", b"\0", framed(b"hello")[:-1], framed(b"hello") * 2])
def test_a_call_has_one_whole_message(body: bytes) -> None:
    assert code(answer(body)) is Code.INTERNAL


def test_a_message_is_no_longer_than_needed() -> None:
    assert code(answer(framed(bytes(1 + (16 << 10))))) is Code.RESOURCE_EXHAUSTED


def test_an_unknown_method_is_not_implemented() -> None:
    assert code(answer(framed(b"hello"), **{":path": "/shop/Buy"})) is Code.UNIMPLEMENTED


@pytest.mark.parametrize("kind", ["application/grpc", "application/grpc+proto", "application/grpc;x=1"])
def test_a_call_is_told_by_its_content_type(kind: str) -> None:
    assert code(answer(framed(b"hello"), **{"content-type": kind})) is Code.OK


@pytest.mark.parametrize(
    "fields", [{":method": "GET"}, {"content-type": "application/grpc-web"}, {"content-type": "text/plain"}]
)
def test_what_is_no_call_is_refused_by_https_status(fields: dict[str, str]) -> None:
    assert answer(framed(b"hello"), **fields).fields[":status"] == "415"


def test_a_sentence_is_percent_encoded() -> None:
    response = answer(framed(b"refuse"))
    assert code(response) is Code.PERMISSION_DENIED
    assert response.trailers["grpc-message"] == "100 %25 of it, na%C3%AFvely%0A"


def test_a_fault_of_the_agents_own_is_not_shown() -> None:
    response = answer(framed(b"fail"))
    assert code(response) is Code.UNKNOWN
    assert "agent's log" in response.trailers["grpc-message"]


@pytest.mark.parametrize("fields", [{":authority": "evil.example"}, {"origin": "https://evil.example"}])
def test_a_browsers_page_may_not_ask(fields: dict[str, str]) -> None:
    assert code(answer(framed(b"hello"), **fields)) is Code.PERMISSION_DENIED


@given(st.binary(max_size=64), st.sampled_from(["identity", "gzip", "deflate", "snappy"]))
def test_whatever_comes_is_answered(body: bytes, encoding: str) -> None:
    code(answer(body, **{"grpc-encoding": encoding}))
