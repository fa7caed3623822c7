"""Exchanges by OpenTelemetry's semantic conventions, version 1.44: names, kinds, attributes, statuses.

HTTP and database conventions are stable, those of RPC a release candidate: `rpc.system.name`, a fully qualified
`rpc.method` and `rpc.response.status_code` take the place of `rpc.system`, `rpc.service` and `rpc.grpc.status_code`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple, TypeAlias

from opentelemetry.trace import SpanKind, StatusCode

from spandial_agent.spans.record import Exchange

__all__ = ["SCHEMA_URL", "Attributes", "Description", "describe", "split_authority"]

SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"

Attributes: TypeAlias = dict[str, "str | int"]

_OTHER = "_OTHER"
# RFC 9110 section 9, PATCH (RFC 5789) and QUERY (draft-ietf-httpbis-safe-method-w-body).
_METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"})
_HTTP_PORTS = {"http": 80, "https": 443}
_DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "redis": 6379}

# doc/statuscodes.md of gRPC: the number is the index.
_GRPC_CODES = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)
_GRPC_UNIMPLEMENTED = 12
# Conventions for gRPC: the caller's fault, and so no error of the server's.
_GRPC_CALLERS_FAULT = frozenset({1, 3, 5, 6, 7, 8, 9, 10, 11, 16})

_BROKEN_OFF = {
    "connection_closed": "the connection closed before the answer had ended",
    "process_exited": "the process ended before the answer had",
}


class Description(NamedTuple):
    """What the conventions make of an exchange."""

    name: str
    kind: SpanKind
    attributes: Attributes
    status: StatusCode
    message: str | None  # the description of an ERROR that no attribute explains


def describe(exchange: Exchange) -> Description:
    """The span that an exchange is. Where no answer was seen, `spandial.end` says so: that alone is no error."""
    attributes: Attributes = {}
    if exchange.protocol == "http":
        name = _http(exchange, attributes)
    elif exchange.protocol == "grpc":
        name = _grpc(exchange, attributes)
    else:
        name = _database(exchange, attributes)
    _network(exchange, attributes)
    error, message = _error_type(exchange), None
    if exchange.end != "answered":
        attributes["spandial.end"] = exchange.end
        message = _BROKEN_OFF.get(exchange.end)
        error = error or (exchange.end if message else "")
    if error:
        attributes["error.type"] = error
    kind = SpanKind.SERVER if exchange.server else SpanKind.CLIENT
    return Description(name, kind, attributes, StatusCode.ERROR if error else StatusCode.UNSET, message)


def _http(exchange: Exchange, attributes: Attributes) -> str:
    """Conventions for HTTP spans. No route is known, so the method alone is the name."""
    known = exchange.method in _METHODS
    attributes["http.request.method"] = exchange.method if known else _OTHER
    if exchange.method and not known:
        attributes["http.request.method_original"] = exchange.method
    path = exchange.path.partition("?")[0]
    host = exchange.authority.rpartition("@")[2] or _host(exchange.peer_address, exchange.peer_port)
    if exchange.server:
        attributes["url.path"] = path
        attributes["url.scheme"] = exchange.scheme
    elif host:  # `*` and the authority of CONNECT (RFC 9112, section 3.2) are no paths
        attributes["url.full"] = f"{exchange.scheme}://{host}{path if path.startswith('/') else ''}"
    if exchange.status is not None:
        attributes["http.response.status_code"] = exchange.status
    for name, size in (
        ("http.request.size", exchange.request_bytes),
        ("http.response.size", exchange.response_bytes),
        ("http.request.body.size", exchange.request_body_bytes),
        ("http.response.body.size", exchange.response_body_bytes),
    ):
        if size is not None:
            attributes[name] = size
    if exchange.version:
        attributes["network.protocol.name"] = "http"
        attributes["network.protocol.version"] = exchange.version
    return exchange.method if known else "HTTP"


def _grpc(exchange: Exchange, attributes: Attributes) -> str:
    """Conventions for gRPC. A method that the server does not implement may be anything: it names no span."""
    attributes["rpc.system.name"] = "grpc"
    attributes["network.protocol.name"] = "http"
    attributes["network.protocol.version"] = "2"
    method = f"{exchange.rpc_service}/{exchange.rpc_method}" if exchange.rpc_service and exchange.rpc_method else ""
    name = method
    if exchange.server and exchange.status == _GRPC_UNIMPLEMENTED and method:
        attributes["rpc.method_original"], name = method, ""
    attributes["rpc.method"] = name or _OTHER
    if exchange.status is not None:
        attributes["rpc.response.status_code"] = _grpc_code(exchange.status)
    return name or "grpc"


def _database(exchange: Exchange, attributes: Attributes) -> str:
    """Conventions for database spans: `{operation} {collection}`, as far as they are known."""
    attributes["db.system.name"] = exchange.protocol
    if exchange.operation:
        attributes["db.operation.name"] = exchange.operation
    if exchange.collection:
        attributes["db.collection.name"] = exchange.collection
    if exchange.namespace:
        attributes["db.namespace"] = exchange.namespace
    if exchange.query_text:
        attributes["db.query.text"] = exchange.query_text
    if exchange.returned_rows is not None:
        attributes["db.response.returned_rows"] = exchange.returned_rows
    if exchange.error and exchange.error_code:
        attributes["db.response.status_code"] = exchange.error_code
    return " ".join(filter(None, (exchange.operation, exchange.collection))) or exchange.protocol


def _network(exchange: Exchange, attributes: Attributes) -> None:
    address, port = _server(exchange)
    if address:
        attributes["server.address"] = address
        if port and port != _DATABASE_PORTS.get(exchange.protocol):
            attributes["server.port"] = port
    if exchange.peer_address:
        if exchange.server:
            attributes["client.address"] = exchange.peer_address
        attributes["network.peer.address"] = exchange.peer_address
        if exchange.peer_port:
            attributes["network.peer.port"] = exchange.peer_port


def _server(exchange: Exchange) -> tuple[str, int]:
    """The server as the client names it, else the address at that end of the connection."""
    address, port = exchange.local_address, exchange.local_port
    if not exchange.server:
        address, port = exchange.peer_address, exchange.peer_port
    if exchange.authority:
        address, named = split_authority(exchange.authority)
        if named or exchange.protocol == "http":  # RFC 9110, section 4.2: the scheme's port is the default
            port = named or _HTTP_PORTS.get(exchange.scheme, 0)
    return address, port


@lru_cache(1024)
def split_authority(authority: str) -> tuple[str, int]:
    """Host and port (RFC 3986, section 3.2), without the user and without an IPv6 address's brackets; port 0: none."""
    authority = authority.rpartition("@")[2]
    if authority.startswith("["):
        host, _, rest = authority[1:].partition("]")
        port = rest[1:] if rest.startswith(":") else ""
    elif authority.count(":") == 1:
        host, _, port = authority.partition(":")
    else:
        host, port = authority, ""
    number = int(port) if len(port) <= 5 and port.isascii() and port.isdigit() else 0
    return host, number if number <= 65535 else 0


def _host(address: str, port: int) -> str:
    host = f"[{address}]" if ":" in address else address
    return f"{host}:{port}" if host and port else host


def _error_type(exchange: Exchange) -> str:
    """The class of error that the answer says, or an empty string."""
    status = exchange.status
    if exchange.protocol == "http" and status is not None and status >= (500 if exchange.server else 400):
        return str(status)
    if exchange.protocol == "grpc" and status and not (exchange.server and status in _GRPC_CALLERS_FAULT):
        return _grpc_code(status)
    return (exchange.error_code or _OTHER) if exchange.error else ""


def _grpc_code(status: int) -> str:
    return _GRPC_CODES[status] if 0 <= status < len(_GRPC_CODES) else str(status)
