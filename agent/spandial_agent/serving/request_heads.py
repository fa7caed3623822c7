"""The heads of the requests on an HTTP/2 connection, read along in what its client sends (RFC 9113). Pure.

Only what somebody has to know who passes the bytes on: where each request begins and with which fields, and which
requests are not whole yet. What each frame means beyond that is the server's.
"""

from __future__ import annotations

from typing import NamedTuple

from hpack import Decoder
from hpack.exceptions import HPACKError

__all__ = ["BLOCK_MAX", "FRAME_MAX", "OPEN_MAX", "PREFACE", "NotHttp2", "RequestHeads"]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_MAX = 16 << 10  # bytes of a payload (SETTINGS_MAX_FRAME_SIZE), which no server here raises
BLOCK_MAX = 16 << 10  # bytes of a header block, and of its fields
OPEN_MAX = 100  # requests that have begun and are not whole: before it knows of a bound, a client may send so many

_DATA, _HEADERS, _RST_STREAM, _CONTINUATION = 0, 1, 3, 9
_END_STREAM, _END_HEADERS, _PADDED, _PRIORITY = 1, 4, 8, 0x20
_FRAME_HEAD = 9  # bytes
_CONTINUATIONS_MAX = 16  # frames of one block


class NotHttp2(ValueError):
    """What a client has sent is no HTTP/2, or more of it than anybody needs."""


class _Frame(NamedTuple):
    length: int
    type: int
    flags: int
    stream: int


class RequestHeads:
    """What one client has sent so far.

    Attributes:
        open: the streams whose requests have begun and are not whole, each with the time when it began.
        begun: when the frame began of which a part is missing; None between frames.
    """

    def __init__(self) -> None:
        self.open: dict[int, float] = {}
        self.begun: float | None = None
        self._preface = PREFACE
        self._decoder = Decoder(BLOCK_MAX)
        self._frame: _Frame | None = None
        self._part = bytearray()  # of a frame's head, or of a header frame's payload
        self._skip = 0  # bytes of another frame's payload that are to come
        self._block: _Frame | None = None  # the frame that the header block at hand began with
        self._blocks = bytearray()
        self._continuations = 0

    def take(self, data: bytes | memoryview, now: float) -> tuple[int, dict[str, str] | None]:
        """Read as far as to the end of the next request's head.

        Returns: how many bytes that are, and the head's fields by name, the first of each; None where it ends not in
        these bytes.

        Raises NotHttp2.
        """
        at = self._take_preface(data)
        while True:
            if self._skip:
                skipped = min(self._skip, len(data) - at)
                at, self._skip = at + skipped, self._skip - skipped
                if self._skip:
                    return at, None
                self._whole()
            needed = (_FRAME_HEAD if self._frame is None else self._frame.length) - len(self._part)
            if at == len(data) and needed:
                return at, None
            if self.begun is None:
                self.begun = now
            taken = data[at : at + needed]
            self._part += taken
            at += len(taken)
            if len(taken) < needed:
                return at, None
            part, self._part = bytes(self._part), bytearray()
            if self._frame is None:
                self._begin(part)
            elif (head := self._header_frame(self._frame, part, now)) is not None:
                return at, head

    def _take_preface(self, data: bytes | memoryview) -> int:
        length = min(len(self._preface), len(data))
        if bytes(data[:length]) != self._preface[:length]:
            raise NotHttp2("the client does not begin as HTTP/2 does")
        self._preface = self._preface[length:]
        return length

    @property
    def is_http2(self) -> bool:
        """Whether the client has begun as HTTP/2 does."""
        return not self._preface

    def _begin(self, head: bytes) -> None:
        length, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
        frame = _Frame(length, kind, flags, int.from_bytes(head[5:], "big") & 0x7FFFFFFF)
        if length > FRAME_MAX:
            raise NotHttp2(f"a frame of {length} bytes")
        if (self._block is not None) != (kind == _CONTINUATION):
            raise NotHttp2("a header block that is not in one piece")
        self._frame = frame
        if kind in (_HEADERS, _CONTINUATION):
            return
        self._skip = length
        if not length:
            self._whole()

    def _whole(self) -> None:
        """All of a frame that is none of a header block has come."""
        frame, self._frame, self.begun = self._frame, None, None
        assert frame is not None
        if frame.type == _RST_STREAM or (frame.type == _DATA and frame.flags & _END_STREAM):
            self.open.pop(frame.stream, None)

    def _header_frame(self, frame: _Frame, payload: bytes, now: float) -> dict[str, str] | None:
        """A part of a header block; the fields of a request's, where it is the last part."""
        self._frame = self.begun = None
        if frame.type == _HEADERS:
            self._block, self._blocks, self._continuations = frame, bytearray(_fragment(frame, payload)), 0
        else:
            self._blocks += payload
            self._continuations += 1
        if len(self._blocks) > BLOCK_MAX or self._continuations > _CONTINUATIONS_MAX:
            raise NotHttp2(f"a header block of more than {BLOCK_MAX} bytes, or in too many pieces")
        if not frame.flags & _END_HEADERS:
            self.begun = now
            return None
        first, self._block = self._block, None
        assert first is not None
        fields = self._decoded()
        if first.flags & _END_STREAM:
            self.open.pop(first.stream, None)
        elif ":method" in fields:
            self.open[first.stream] = now
            if len(self.open) > OPEN_MAX:
                raise NotHttp2(f"more than {OPEN_MAX} requests that are not whole")
        return fields if ":method" in fields else None

    def _decoded(self) -> dict[str, str]:
        try:
            fields = list(self._decoder.decode(bytes(self._blocks), raw=True))
        except HPACKError as error:
            raise NotHttp2(f"a header block that is none: {error!r}") from error
        self._blocks = bytearray()
        return {name.decode("latin-1"): value.decode("latin-1") for name, value, *_ in reversed(fields)}


def _fragment(frame: _Frame, payload: bytes) -> bytes:
    """What is of the header block in the payload of a frame HEADERS (RFC 9113, section 6.2)."""
    start, end = 0, len(payload)
    if frame.flags & _PADDED:
        if not payload:
            raise NotHttp2("a padded frame without its padding")
        start, end = 1, end - payload[0]
    if frame.flags & _PRIORITY:
        start += 5
    if start > end:
        raise NotHttp2("a frame whose padding is longer than itself")
    return payload[start:end]
