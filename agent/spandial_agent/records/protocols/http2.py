"""HTTP/2: the header blocks of a connection, of which the capture may have missed some (RFC 9113; HPACK, RFC 7541)."""

from __future__ import annotations

import re
from typing import NamedTuple

from hpack.exceptions import HPACKDecodingError, InvalidTableIndexError
from hpack.hpack import decode_integer
from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable, table_entry_size

__all__ = [
    "RESET_CODES",
    "HeaderBlocks",
    "Headers",
    "Request",
    "Response",
    "grpc_status_of_reset",
    "read_request",
    "read_response",
]

# RFC 9113, section 7.
RESET_CODES = dict(
    enumerate(
        (
            "NO_ERROR",
            "PROTOCOL_ERROR",
            "INTERNAL_ERROR",
            "FLOW_CONTROL_ERROR",
            "SETTINGS_TIMEOUT",
            "STREAM_CLOSED",
            "FRAME_SIZE_ERROR",
            "REFUSED_STREAM",
            "CANCEL",
            "COMPRESSION_ERROR",
            "CONNECT_ERROR",
            "ENHANCE_YOUR_CALM",
            "INADEQUATE_SECURITY",
            "HTTP_1_1_REQUIRED",
        )
    )
)
# gRPC over HTTP2, Errors: CANCELLED, RESOURCE_EXHAUSTED, PERMISSION_DENIED, UNAVAILABLE; mostly INTERNAL; else UNKNOWN.
_GRPC_STATUSES = {7: 14, 8: 1, 11: 8, 12: 7} | dict.fromkeys((0, 1, 2, 3, 4, 6, 9, 10), 13)

# Bytes of a dynamic table that are remembered, counted as in RFC 7541, section 4.1, whatever its encoder may use, which
# is mostly 4,096 (RFC 9113, section 6.5.2). As Python's objects they are up to four times as many.
_TABLE_MAX = 2**13
_LIST_MAX = 2**16  # bytes of one block's fields, counted likewise: a byte of a block can refer to a whole entry
_INTEGER_MAX = 6  # bytes of an integer: prefix and 35 bits. RFC 7541, section 5.1, leaves the limit to the decoder


class Headers(NamedTuple):
    """What one header block says. A block that breaks RFC 7541 says nothing: no fields, and not complete."""

    fields: tuple[tuple[str, str], ...]  # name in lower case, value; in the order of the block
    unknown: int  # fields whose name or value could not be known
    complete: bool  # the block was decoded to its end


class Request(NamedTuple):
    """The fields of a request that tell what it asks for; "" where there is none."""

    method: str
    path: str  # without the query, which may hold what should not leave the machine
    path_known: bool  # an empty path means that there is none
    authority: str
    scheme: str
    content_type: str
    grpc: bool | None  # None: cannot be known
    service: str  # package.Service; "" if not gRPC
    rpc_method: str
    traceparent: str
    tracestate: str
    user_agent: str


class Response(NamedTuple):
    """The fields of a response, or of its trailers, that tell how it ended; None where there is none."""

    status: int | None
    grpc_status: int | None  # 0 to 16


class _Unknown(bytes):
    """A name or a value that was not seen. It is told from an empty one by being this object."""


_UNKNOWN = _Unknown()


class _OutOfBytes(HPACKDecodingError):
    """The block ends within a field."""


class _Block:
    """The primitive types of a header block (RFC 7541, section 5), read one after the other."""

    def __init__(self, block: bytes) -> None:
        self._bytes = block
        self._at = 0

    def next_byte(self) -> int | None:
        return self._bytes[self._at] if self._at < len(self._bytes) else None

    def integer(self, prefix: int) -> int:
        """An integer whose first byte has `prefix` bits of it (section 5.1)."""
        try:
            number, length = decode_integer(self._bytes[self._at : self._at + _INTEGER_MAX], prefix)
        except HPACKDecodingError:
            if len(self._bytes) - self._at < _INTEGER_MAX:
                raise _OutOfBytes from None
            raise
        self._at += length
        return number

    def string(self) -> bytes:
        """A string literal, Huffman-coded or not (section 5.2)."""
        huffman = (self.next_byte() or 0) & 0x80
        end = self.integer(7) + self._at
        if end > len(self._bytes):
            raise _OutOfBytes
        text = self._bytes[self._at : end]
        self._at = end
        return decode_huffman(text) if huffman else text


class HeaderBlocks:
    """The header blocks of one direction of a connection, in their order. Never raises.

    The dynamic table holds what was seen to be inserted. Its indices count from the newest entry (RFC 7541, section
    2.3.3), so what is behind the oldest known entry need not be known: an index that reaches there is an unknown field.
    Eviction (section 4.4) changes no index either, and an encoder refers to nothing that it has evicted. So entries of
    unknown size may be counted with the least they can have, and an unknown table size as the largest: entries are then
    kept for longer than the encoder keeps them, but never referred to.
    """

    def __init__(self, *, fresh: bool) -> None:
        """`fresh`: no earlier block of this direction exists, so the table is empty and has its initial size."""
        self._table = HeaderTable()  # 4,096 bytes: RFC 9113, section 6.5.2
        if not fresh:
            self._forget(_TABLE_MAX)

    def decode(self, block: bytes, *, cut: bool = False) -> Headers:
        """The fields of the next block; with `cut`, of its beginning, the rest of which is lost."""
        reader = _Block(block)
        fields: list[tuple[str, str]] = []
        unknown = size = 0
        try:
            self._resize(reader)
            while reader.next_byte() is not None:
                name, value = self._field(reader)
                size += table_entry_size(name, value)
                if name is _UNKNOWN or value is _UNKNOWN or size > _LIST_MAX:
                    unknown += 1
                else:
                    fields.append((_text(name.lower()), _text(value)))
        except HPACKDecodingError as error:
            if not (cut and isinstance(error, _OutOfBytes)):
                self._forget(_TABLE_MAX)
                return Headers((), 0, complete=False)
        if cut:  # the rest may have inserted any number of entries, but size updates come before the first field
            self._forget(self._table.maxsize if fields or unknown else _TABLE_MAX)
        return Headers(tuple(fields), unknown, complete=not cut)

    def skip(self, insertions: int | None) -> None:
        """Blocks are missing, in which so many literals with incremental indexing were; None: nobody knows how many.

        None is right too where a size update may be among them. With a number, the table keeps its size, and entries
        might be forgotten too soon, though never mistaken.
        """
        if insertions is None:
            self._forget(_TABLE_MAX)
        else:
            most = self._table.maxsize // table_entry_size(b"", b"") + 1
            for _ in range(min(insertions, most)):
                self._table.add(_UNKNOWN, _UNKNOWN)

    def _forget(self, size: int) -> None:
        self._table = HeaderTable()
        self._table.maxsize = size

    def _resize(self, block: _Block) -> None:
        """Dynamic table size updates (section 6.3), which stand at the beginning of a block only (section 4.2)."""
        while (first := block.next_byte()) is not None and first & 0xE0 == 0x20:
            self._table.maxsize = min(block.integer(5), _TABLE_MAX)

    def _field(self, block: _Block) -> tuple[bytes, bytes]:
        """The next field, in one of the representations of sections 6.1 and 6.2."""
        first = block.next_byte() or 0
        if first & 0x80:
            return self._entry(block.integer(7))
        if first & 0xE0 == 0x20:
            raise HPACKDecodingError("a table size update behind a field")
        incremental = first & 0x40  # the others, without indexing and never indexed, insert nothing
        index = block.integer(6 if incremental else 4)
        name = self._entry(index)[0] if index else block.string()
        value = block.string()
        if incremental:
            self._table.add(name, value)
        return name, value

    def _entry(self, index: int) -> tuple[bytes, bytes]:
        if index == 0:
            raise HPACKDecodingError("index 0 (RFC 7541, section 6.1)")
        try:
            return self._table.get_by_index(index)
        except InvalidTableIndexError:
            return _UNKNOWN, _UNKNOWN


def read_request(headers: Headers) -> Request:
    """What a request asks for (RFC 9113, section 8.3.1)."""
    found = _first_of_each(headers)
    path = found.get(":path", "").partition("?")[0]
    content_type = found.get("content-type", "")
    grpc = _is_grpc(content_type) if "content-type" in found or _all_known(headers) else None
    service, rpc_method = _rpc(path) if grpc else ("", "")
    return Request(
        method=found.get(":method", ""),
        path=path,
        path_known=":path" in found or _all_known(headers),
        authority=found.get(":authority", "") or found.get("host", ""),
        scheme=found.get(":scheme", ""),
        content_type=content_type,
        grpc=grpc,
        service=service,
        rpc_method=rpc_method,
        traceparent=found.get("traceparent", ""),
        tracestate=",".join(value for name, value in headers.fields if name == "tracestate"),  # W3C, 3.3: one list
        user_agent=found.get("user-agent", ""),
    )


def read_response(headers: Headers) -> Response:
    """How a request ended: the status of the first block (RFC 9113, section 8.3.2), gRPC's of the trailers."""
    found = _first_of_each(headers)
    status, grpc_status = found.get(":status", ""), found.get("grpc-status", "")
    return Response(
        status=int(status) if re.fullmatch("[1-9][0-9]{2}", status) else None,
        grpc_status=int(grpc_status) if re.fullmatch("[0-9]|1[0-6]", grpc_status) else None,
    )


def grpc_status_of_reset(code: int) -> int:
    """The status of a call whose stream was reset with this error code."""
    return _GRPC_STATUSES.get(code, 2)


def _first_of_each(headers: Headers) -> dict[str, str]:
    return dict(reversed(headers.fields))


def _all_known(headers: Headers) -> bool:
    return headers.complete and not headers.unknown


def _is_grpc(content_type: str) -> bool:
    """application/grpc, also with +proto and the like (gRPC over HTTP2, Requests); not application/grpc-web."""
    return re.match(r"application/grpc\s*([+;]|$)", content_type, re.IGNORECASE) is not None


def _rpc(path: str) -> tuple[str, str]:
    """Service and method of "/service/method"; the service may hold further slashes, the method none."""
    service, _, method = path[1:].rpartition("/")
    return (service, method) if path.startswith("/") and service and method else ("", "")


def _text(octets: bytes) -> str:
    return octets.decode("utf-8", "backslashreplace")
