"""The kernel finds requests and their trace context as the OpenTelemetry SDK's own propagator does."""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from opentelemetry.context import Context
from opentelemetry.trace import get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from spandial.decision import parse_randomness
from spandial_agent.capture.capture import SCANS
from spandial_agent.kernel.cache import CompileCache
from spandial_agent.kernel.compiler import Build
from spandial_agent.kernel.libbpf import Map, RawTracepointRun
from spandial_agent.kernel.loader import Module
from tests.agent_process import COMPILED

pytestmark = pytest.mark.kernel

HEAD_MAX = 1024
OUTPUT = struct.Struct("=4I4Q")
METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "CONNECT", "TRACE"]
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Head(NamedTuple):
    request: bool
    request_line: int
    traced: bool
    sampled: bool
    trace_id: int
    span_id: int
    randomness: int


Parse = Callable[[bytes], Head]


@pytest.fixture(scope="module")
def parse() -> Iterator[Parse]:
    module = Module(Build(Path(__file__).parent / "parse.c"), cache=CompileCache(COMPILED))
    run = RawTracepointRun(module.load("parse", callbacks=SCANS))
    given_bytes = Map(module.map_fd("input"), HEAD_MAX)
    output = Map(module.map_fd("output"), OUTPUT.size)
    # What an earlier, longer head left behind must not be seen.
    rest = b"\r\ntraceparent: 00-ffffffffffffffffffffffffffffffff-ffffffffffffffff-01\r\n" * 20

    def parse(head: bytes) -> Head:
        given_bytes[0] = (head + rest)[:HEAD_MAX]
        assert run(min(len(head), HEAD_MAX)) == 0
        request, line, traced, sampled, high, low, span, randomness = OUTPUT.unpack(output[0][0])
        return Head(bool(request), line, bool(traced), bool(sampled), high << 64 | low, span, randomness)

    yield parse
    module.close()


def head(*headers: str, method: str = "GET", path: str = "/") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", *headers, "", ""]).encode("latin-1")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_begins_a_request(parse: Parse, method: str) -> None:
    found = parse(head("host: x", method=method, path="/a?b"))
    assert found.request
    assert found.request_line == len(f"{method} /a?b HTTP/1.1")


@pytest.mark.parametrize(
    "other",
    [
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"GET foo\r\nGET bar\r\n",  # Redis, inline
        b"get / HTTP/1.1\r\n\r\n",
        b"GETX / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
        b"GET / HTTP/1.15\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"DELETE FROM t WHERE x = 1\r\n",
        b"POST",
        b"GET / H\r\n",
        b"\x16\x03\x01\x02\x00GET / HTTP/1.1\r\n",
        b"PUT 0 0 60 5\r\nhello\r\n",
    ],
)
def test_other_bytes_are_no_request(parse: Parse, other: bytes) -> None:
    assert not parse(other.ljust(8, b"\0")).request


def test_http_1_0_and_a_bare_line_feed_are_requests(parse: Parse) -> None:
    assert parse(b"GET / HTTP/1.0\r\n\r\n").request
    assert parse(b"GET / HTTP/1.1\nhost: x\n\n").request_line == len("GET / HTTP/1.1")


def test_a_request_line_longer_than_the_bytes_in_reach_is_a_request(parse: Parse) -> None:
    found = parse(head(path="/" + "a" * 2000))
    assert found.request
    assert found.request_line == 0


@pytest.mark.parametrize("name", ["traceparent", "Traceparent", "TRACEPARENT", "tRaCePaReNt"])
@pytest.mark.parametrize("space", ["", " ", "\t", "   "])
def test_traceparent_is_found_in_any_letter_case(parse: Parse, name: str, space: str) -> None:
    found = parse(head("host: x", f"{name}:{space}{PARENT}"))
    assert found.traced
    assert found.sampled
    assert found.trace_id == 0x0AF7651916CD43DD8448EB211C80319C
    assert found.span_id == 0xB7AD6B7169203331
    assert found.randomness == 0x48EB211C80319C


@pytest.mark.parametrize("padding", [*range(70, 90), 300, 777, 850, 870])
def test_traceparent_is_found_at_every_offset_of_the_first_1024_bytes(parse: Parse, padding: int) -> None:
    found = parse(head("x: " + "a" * padding, f"traceparent: {PARENT}", "y: z"))
    assert found.traced == (len(head("x: " + "a" * padding, f"traceparent: {PARENT}")) - 4 < HEAD_MAX)


def test_a_traceparent_past_the_first_1024_bytes_is_not_seen(parse: Parse) -> None:
    found = parse(head("x: " + "a" * 1100, f"traceparent: {PARENT}"))
    assert found.request
    assert not found.traced


def test_a_traceparent_in_the_body_is_not_seen(parse: Parse) -> None:
    assert not parse(head("host: x", method="POST") + f"\ntraceparent: {PARENT}\r\n".encode()).traced


def test_a_header_whose_name_only_begins_or_ends_so_is_not_it(parse: Parse) -> None:
    assert not parse(head(f"x-traceparent: {PARENT}", f"traceparents: {PARENT}", f"traceparen: {PARENT}")).traced


def test_a_head_cut_off_within_the_traceparent_has_none(parse: Parse) -> None:
    whole = head(f"traceparent: {PARENT}")
    end = whole.index(b"-01") + 3
    assert parse(whole[:end]).traced
    for length in range(16, end):
        assert not parse(whole[:length]).traced


def by_the_sdk(value: str, tracestate: str | None = None) -> Head | None:
    """What the SDK's propagator extracts; None without a valid parent."""
    carrier = {"traceparent": value, **({} if tracestate is None else {"tracestate": tracestate})}
    context = get_current_span(TraceContextTextMapPropagator().extract(carrier, context=Context())).get_span_context()
    if not context.is_valid:
        return None
    rv = parse_randomness(context.trace_state.get("ot", ""))
    randomness = context.trace_id & (2**56 - 1) if rv is None else rv
    sampled = context.trace_flags.sampled
    return Head(True, 0, True, sampled, context.trace_id, context.span_id, randomness)


hexadecimal = st.text("0123456789abcdef", min_size=1, max_size=40)
parents = st.one_of(
    st.builds(
        lambda version, trace, span, flags, end: f"{version:02x}-{trace:032x}-{span:016x}-{flags:02x}{end}",
        st.sampled_from([0, 0, 0, 1, 0xFE, 0xFF]),
        st.one_of(st.just(0), st.integers(0, 2**128 - 1)),
        st.one_of(st.just(0), st.integers(0, 2**64 - 1)),
        st.integers(0, 255),
        st.sampled_from(["", "", "", " ", "-", "-00", "x", "\t"]),
    ),
    st.builds("-".join, st.lists(hexadecimal, min_size=1, max_size=5)),
    st.tuples(st.integers(0, 54), st.characters(min_codepoint=33, max_codepoint=126)).map(
        lambda change: PARENT[: change[0]] + change[1] + PARENT[change[0] + 1 :]
    ),
)


@settings(max_examples=3000, suppress_health_check=list(HealthCheck))
@given(parents)
@example(PARENT.upper())
@example("00-00000000000000000000000000000000-b7ad6b7169203331-01")
@example("00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01")
@example("ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
def test_kernel_and_sdk_accept_the_same_traceparents(parse: Parse, value: str) -> None:
    found, expected = parse(head("host: x", f"traceparent: {value}")), by_the_sdk(value)
    if expected is None:
        assert not found.traced
    else:
        assert found._replace(request_line=0) == expected


digits = "0123456789abcdef"
members = st.one_of(
    st.sampled_from(["congo=t61rcWkgMzE", "rojo=00f067aa0ba902b7", "o=rv:11111111111111", "xot=rv:22222222222222"]),
    st.builds(lambda rv: f"ot=rv:{rv}", st.text(digits, min_size=13, max_size=15)),
    st.builds(
        lambda rv, th: f"ot=th:{th};rv:{rv}", st.text(digits, min_size=14, max_size=14), st.text(digits, min_size=1)
    ),
    st.builds(lambda rv: f"ot=rv:{rv};th:8;x:y", st.text(digits, min_size=14, max_size=14)),
    st.builds(lambda rv: f"ot=xrv:{rv};p:8", st.text(digits, min_size=14, max_size=14)),
)


@settings(max_examples=3000, suppress_health_check=list(HealthCheck))
@given(
    st.lists(members, min_size=1, max_size=5, unique_by=lambda member: member.split("=")[0]),
    st.sampled_from([",", ", "]),
)
def test_kernel_and_sdk_find_the_same_explicit_randomness(parse: Parse, found_members: list[str], comma: str) -> None:
    tracestate = comma.join(found_members)
    if re.search(r"th:[0-9a-f]{15,}", tracestate):
        return  # too long for a member
    expected = by_the_sdk(PARENT, tracestate)
    for order in (
        [f"traceparent: {PARENT}", f"tracestate: {tracestate}"],
        [f"tracestate:{tracestate}", f"traceparent:{PARENT}"],
    ):
        found = parse(head(*order))
        assert expected is not None
        assert found.randomness == expected.randomness


@settings(max_examples=2000, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=1100), st.booleans())
def test_no_bytes_are_misread(parse: Parse, noise: bytes, begins: bool) -> None:
    found = parse((b"GET / HTTP/1.1\r\n" if begins else b"") + noise)
    if found.traced:
        assert b"traceparent" in noise.lower()


def test_random_heads_of_real_size_parse_as_they_were_made(parse: Parse) -> None:
    rng = random.Random(7)
    for _ in range(2000):
        trace_id, span_id, flags = rng.getrandbits(128) | 1, rng.getrandbits(64) | 1, rng.getrandbits(8)
        headers = [f"h{n}: {'v' * rng.randrange(40)}" for n in range(rng.randrange(15))]
        headers.insert(rng.randrange(len(headers) + 1), f"traceparent: 00-{trace_id:032x}-{span_id:016x}-{flags:02x}")
        found = parse(head(*headers))
        assert (found.trace_id, found.span_id, found.sampled) == (trace_id, span_id, bool(flags & 1))
