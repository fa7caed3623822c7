"""The request line of HTTP/1.x."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from spandial_agent.records.protocols.http1 import parse_request_line, parse_status

_tokens = st.from_regex(r"[A-Z]{1,8}", fullmatch=True)
_paths = st.from_regex(r"/[a-zA-Z0-9._~/%-]{0,40}", fullmatch=True)
_queries = st.from_regex(r"(\?[ -~]{0,20})?", fullmatch=True).map(lambda text: text.replace(" ", "+"))


@given(st.binary(max_size=300))
@example(b"")
@example(b" ")
@example(b"\r\n")
@example(b"GET http://")
@example(b"GET http:///?")
def test_no_bytes_make_it_raise(request: bytes) -> None:
    method, path = parse_request_line(request)
    assert "\n" not in method + path
    assert "?" not in path
    assert " " not in method + path


@given(st.binary(max_size=30) | st.binary(max_size=6).map(b"HTTP/1.1 ".__add__))
@example(b"HTTP/1.1 99\xb2 ")
@example(b"HTTP/1.0 000")
def test_a_status_is_a_number_of_three_digits_or_none(answer: bytes) -> None:
    status = parse_status(answer)
    assert status is None or (100 <= status <= 999 and b"%d" % status == answer[9:12])


@given(_tokens, _paths, _queries, st.sampled_from([b"HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.0\r\n", b"HTTP/1.1\n"]))
def test_method_and_path_come_back(method: str, path: str, query: str, rest: bytes) -> None:
    assert parse_request_line(f"{method} {path}{query} ".encode() + rest) == (method, path)


@given(_tokens, _paths, _queries, st.integers(0, 60))
def test_of_a_request_that_is_cut_off_what_is_there_is_told(method: str, path: str, query: str, length: int) -> None:
    found_method, found_path = parse_request_line(f"{method} {path}{query} HTTP/1.1\r\n".encode()[:length])
    assert method.startswith(found_method)
    assert path.startswith(found_path)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (b"GET / HTTP/1.1\r\n", ("GET", "/")),
        (b"GET /a/b?token=secret HTTP/1.1\r\n", ("GET", "/a/b")),
        (b"GET /?a=1?b=2 HTTP/1.1\r\n", ("GET", "/")),
        (b"GET http://example.org/a?x=1 HTTP/1.1\r\n", ("GET", "/a")),
        (b"GET HTTP://example.org:80/a HTTP/1.1\r\n", ("GET", "/a")),
        (b"GET http://user:secret@example.org/a HTTP/1.1\r\n", ("GET", "/a")),
        (b"GET http://example.org HTTP/1.1\r\n", ("GET", "/")),
        (b"GET http://example.org?x=1 HTTP/1.1\r\n", ("GET", "/")),
        (b"GET http://example.org?x=/secret HTTP/1.1\r\n", ("GET", "/")),
        (b"GET https://example.org/a HTTP/1.1\r\n", ("GET", "/a")),
        (b"GET https://user:secret@example.org/a HTTP/1.1\r\n", ("GET", "/a")),
        (b"GET /a#fragment HTTP/1.1\r\n", ("GET", "/a#fragment")),
        (b"OPTIONS * HTTP/1.1\r\n", ("OPTIONS", "*")),
        (b"CONNECT example.org:443 HTTP/1.1\r\n", ("CONNECT", "example.org:443")),
        (b"GET /a", ("GET", "/a")),
        (b"GET /a?to", ("GET", "/a")),
        (b"GET ", ("GET", "")),
        (b"GE", ("GE", "")),
        (b"", ("", "")),
        ("GET /caf\u00e9 HTTP/1.1\r\n".encode(), ("GET", "/café")),
        (b"GET /\xff\xfe HTTP/1.1\r\n", ("GET", "/\\xff\\xfe")),
        (b"GET /a\nX: y", ("GET", "/a")),
    ],
)
def test_request_lines(request_: bytes, expected: tuple[str, str]) -> None:
    assert parse_request_line(request_) == expected
