"""Unary calls of gRPC over HTTP/2 (its doc/PROTOCOL-HTTP2.md and compression.md).

gRPC's own server bounds nothing by peer and does not say by which :authority it is asked.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from enum import IntEnum
from urllib.parse import quote

import structlog
from starlette.datastructures import Headers

from spandial_agent.serving.http2 import Request, Response
from spandial_api.origins import why_refused

__all__ = ["Code", "Method", "Status", "UnaryCalls"]

Method = Callable[[bytes, Request], Awaitable[bytes]]

_MESSAGE_MAX = 16 << 10  # bytes of a question
_PREFIX = 5  # bytes: whether the message is compressed, and its length
_WINDOW_BITS = {"gzip": 31, "deflate": 15}  # of zlib's, for each encoding
_FIELDS = {"content-type": "application/grpc", "grpc-accept-encoding": ", ".join(["identity", *_WINDOW_BITS])}
_PLAIN = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")  # what of a sentence is not percent-encoded


class Code(IntEnum):
    """Those that are used here."""

    OK = 0
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAUTHENTICATED = 16


class Status(Exception):
    """How a call has ended. HTTP's own status is 200 for whatever is a call."""

    def __init__(self, code: Code, sentence: str = "", http: int = 200) -> None:
        super().__init__(sentence)
        self.code, self.sentence, self.http = code, sentence, http


class UnaryCalls:
    """Answers requests by methods.

    Args:
        methods: by path. Each is given its message, and by whom and with which metadata; it may raise Status.
        host_names: that the server has beside addresses and `localhost`.
        refused: where is counted what is refused, by reason.
    """

    def __init__(self, methods: Mapping[str, Method], host_names: Collection[str], refused: Counter[str]) -> None:
        self._methods, self._host_names, self._refused = methods, frozenset(host_names), refused

    async def answer(self, request: Request) -> Response:
        message, status = b"", Status(Code.OK)
        try:
            answered = await self._answer(request)
            message = b"\0" + len(answered).to_bytes(4, "big") + answered
        except Status as ended:
            status = ended
        except Exception:
            structlog.get_logger("spandial.grpc").exception("a call could not be answered")
            status = Status(Code.UNKNOWN, "the call could not be answered: the agent's log says why")
        trailers = {"grpc-status": str(int(status.code))}
        if status.sentence:
            trailers["grpc-message"] = quote(status.sentence, _PLAIN, errors="replace")
        return Response({":status": str(status.http), **_FIELDS}, message, trailers)

    async def _answer(self, request: Request) -> bytes:
        asked = request.fields
        message = _message(request.body, asked)
        headers = {name: asked[name] for name in ("host", "origin", "sec-fetch-site") if name in asked}
        headers["host"] = asked.get(":authority", headers.get("host", ""))
        why = why_refused(Headers(headers), self._host_names)
        if why is not None:
            self._refused[why[0]] += 1
            raise Status(Code.PERMISSION_DENIED, why[1])
        if asked[":path"] not in self._methods:
            raise Status(Code.UNIMPLEMENTED, f"there is no method {asked[':path'][:100]!r}")
        return await self._methods[asked[":path"]](message, request)


def _message(body: bytes, fields: Mapping[str, str]) -> bytes:
    """The message of a request. Raises Status."""
    kind = fields.get("content-type", "")
    if fields[":method"] != "POST" or not kind.startswith("application/grpc") or kind[16:17] not in ("", "+", ";"):
        sentence = f"a call is a POST of application/grpc; received {fields[':method'][:40]!r} of {kind[:40]!r}"
        raise Status(Code.UNKNOWN, sentence, 415)
    if len(body) > _PREFIX + _MESSAGE_MAX:
        raise Status(Code.RESOURCE_EXHAUSTED, f"a message has {_MESSAGE_MAX} bytes at most")
    if len(body) < _PREFIX or int.from_bytes(body[1:_PREFIX], "big") != len(body) - _PREFIX:
        raise Status(Code.INTERNAL, "a call has one message, with its length before it")
    return _inflated(body[_PREFIX:], fields.get("grpc-encoding", "identity")) if body[0] else body[_PREFIX:]


def _inflated(message: bytes, encoding: str) -> bytes:
    if encoding not in _WINDOW_BITS:
        code = Code.INTERNAL if encoding == "identity" else Code.UNIMPLEMENTED
        raise Status(code, f"a message may be compressed by gzip or deflate; received grpc-encoding {encoding[:40]!r}")
    inflating = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        inflated = inflating.decompress(message, _MESSAGE_MAX + 1)
    except zlib.error as error:
        raise Status(Code.INTERNAL, f"the message is not what {encoding} makes: {error}") from error
    if len(inflated) > _MESSAGE_MAX:
        raise Status(Code.RESOURCE_EXHAUSTED, f"a message has {_MESSAGE_MAX} bytes at most")
    if not inflating.eof:
        raise Status(Code.INTERNAL, f"the message is not the whole of what {encoding} makes")
    return inflated
