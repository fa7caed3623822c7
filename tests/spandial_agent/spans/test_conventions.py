"""Exchanges by OpenTelemetry's semantic conventions."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.semconv import _incubating, attributes, schemas
from opentelemetry.trace import SpanKind, StatusCode

from spandial_agent.spans.conventions import SCHEMA_URL, describe, split_authority
from spandial_agent.spans.record import Exchange
from tests.spandial_agent.spans.exchanges import any_exchange, exchange

PEER: dict[str, Any] = {"peer_address": "10.0.0.7", "peer_port": 40000}
LOCAL: dict[str, Any] = {"local_address": "10.0.0.2", "local_port": 8080}
SHOP: dict[str, Any] = {"method": "GET", "path": "/pay", "authority": "shop.example:8080", "version": "1.1"}


def test_a_received_http_request() -> None:
    description = describe(exchange(**PEER, **LOCAL, **SHOP, status=200, request_bytes=120, response_bytes=2000))
    assert (description.name, description.kind) == ("GET", SpanKind.SERVER)
    assert (description.status, description.message) == (StatusCode.UNSET, None)
    assert description.attributes == {
        "http.request.method": "GET",
        "url.path": "/pay",
        "url.scheme": "http",
        "http.response.status_code": 200,
        "http.request.size": 120,
        "http.response.size": 2000,
        "network.protocol.name": "http",
        "network.protocol.version": "1.1",
        "server.address": "shop.example",
        "server.port": 8080,
        "client.address": "10.0.0.7",
        "network.peer.address": "10.0.0.7",
        "network.peer.port": 40000,
    }


def test_the_bodies_of_http2() -> None:
    sizes = describe(exchange(**SHOP, request_body_bytes=0, response_body_bytes=2000)).attributes
    assert (sizes["http.request.body.size"], sizes["http.response.body.size"]) == (0, 2000)


def test_a_sent_http_request() -> None:
    description = describe(exchange(server=False, peer_address="10.0.0.9", peer_port=8080, **LOCAL, **SHOP, status=200))
    assert (description.name, description.kind) == ("GET", SpanKind.CLIENT)
    assert description.attributes == {
        "http.request.method": "GET",
        "url.full": "http://shop.example:8080/pay",
        "http.response.status_code": 200,
        "network.protocol.name": "http",
        "network.protocol.version": "1.1",
        "server.address": "shop.example",
        "server.port": 8080,
        "network.peer.address": "10.0.0.9",
        "network.peer.port": 8080,
    }


@pytest.mark.parametrize(
    ("method", "name", "expected"),
    [
        ("GET", "GET", {"http.request.method": "GET"}),
        ("QUERY", "QUERY", {"http.request.method": "QUERY"}),
        ("get", "HTTP", {"http.request.method": "_OTHER", "http.request.method_original": "get"}),
        ("PURGE", "HTTP", {"http.request.method": "_OTHER", "http.request.method_original": "PURGE"}),
        ("", "HTTP", {"http.request.method": "_OTHER"}),
    ],
)
def test_methods_that_are_not_known_name_no_span(method: str, name: str, expected: dict[str, str]) -> None:
    description = describe(exchange(method=method, path="/a"))
    assert description.name == name
    found = {key: value for key, value in description.attributes.items() if key.startswith("http.request.method")}
    assert found == expected


@pytest.mark.parametrize(
    ("fields", "url"),
    [
        ({"authority": "a.example", "path": "/b"}, "http://a.example/b"),
        ({"authority": "a.example", "path": "/b", "scheme": "https"}, "https://a.example/b"),
        ({"authority": "me:secret@a.example", "path": "/b"}, "http://a.example/b"),
        ({"authority": "a.example", "path": "/b?card=1"}, "http://a.example/b"),
        ({"authority": "[::1]:80", "path": "/b"}, "http://[::1]:80/b"),
        ({"authority": "a.example", "path": "*"}, "http://a.example"),
        ({"authority": "a.example:443", "path": "a.example:443"}, "http://a.example:443"),
        ({"peer_address": "10.0.0.7", "peer_port": 81, "path": "/b"}, "http://10.0.0.7:81/b"),
        ({"peer_address": "fe80::1", "peer_port": 81, "path": "/b"}, "http://[fe80::1]:81/b"),
        ({"path": "/b"}, None),
    ],
)
def test_the_url_of_a_sent_request(fields: dict[str, Any], url: str | None) -> None:
    assert describe(exchange(server=False, method="GET", **fields)).attributes.get("url.full") == url


def test_the_query_of_a_url_does_not_leave_the_machine() -> None:
    for server in (True, False):
        found = describe(exchange(server=server, method="GET", path="/b?card=1", authority="a")).attributes
        assert not [value for value in found.values() if "card" in str(value)]


@pytest.mark.parametrize(
    ("protocol", "fields", "server"),
    [
        ("http", {"authority": "a.example"}, ("a.example", 80)),
        ("http", {"authority": "a.example", "scheme": "https"}, ("a.example", 443)),
        ("http", {"authority": "a.example:81"}, ("a.example", 81)),
        ("http", {}, ("10.0.0.2", 8080)),
        ("grpc", {"authority": "orders"}, ("orders", 8080)),
        ("grpc", {"authority": "orders:50051"}, ("orders", 50051)),
        ("grpc", {}, ("10.0.0.2", 8080)),
        ("http", {"local_address": "/run/a.sock", "local_port": 0}, ("/run/a.sock", None)),
        ("http", {"local_address": "", "local_port": 0}, (None, None)),
    ],
)
def test_the_server_is_the_one_that_the_client_names(
    protocol: str, fields: dict[str, Any], server: tuple[str | None, int | None]
) -> None:
    found = describe(exchange(protocol, **{**PEER, **LOCAL, **fields})).attributes
    assert (found.get("server.address"), found.get("server.port")) == server


@pytest.mark.parametrize(
    ("authority", "parts"),
    [
        ("a.example", ("a.example", 0)),
        ("a.example:80", ("a.example", 80)),
        ("a.example:", ("a.example", 0)),
        ("a.example:99999", ("a.example", 0)),
        ("a.example:-1", ("a.example", 0)),
        ("a.example:\N{ARABIC-INDIC DIGIT ONE}", ("a.example", 0)),
        ("me@a.example:80", ("a.example", 80)),
        ("[::1]", ("::1", 0)),
        ("[::1]:80", ("::1", 80)),
        ("[::1", ("::1", 0)),
        ("::1", ("::1", 0)),
        ("", ("", 0)),
    ],
)
def test_authorities(authority: str, parts: tuple[str, int]) -> None:
    assert split_authority(authority) == parts


@given(st.text(max_size=50))
def test_any_text_is_some_authority(authority: str) -> None:
    host, port = split_authority(authority)
    assert host in authority
    assert 0 <= port <= 65535


HTTP_STATUSES = [(100, "", ""), (200, "", ""), (302, "", ""), (404, "", "404"), (499, "", "499"), (500, "500", "500")]


@pytest.mark.parametrize(("status", "to_the_server", "to_the_client"), HTTP_STATUSES)
def test_http_statuses_that_are_errors(status: int, to_the_server: str, to_the_client: str) -> None:
    for server, error in ((True, to_the_server), (False, to_the_client)):
        description = describe(exchange(server=server, method="GET", status=status))
        assert description.attributes["http.response.status_code"] == status
        assert description.attributes.get("error.type", "") == error
        assert description.status is (StatusCode.ERROR if error else StatusCode.UNSET)
        assert description.message is None


# Conventions for gRPC: codes, and whether they are errors of the server's span too.
GRPC_STATUSES = [
    (1, "CANCELLED", False),
    (2, "UNKNOWN", True),
    (3, "INVALID_ARGUMENT", False),
    (4, "DEADLINE_EXCEEDED", True),
    (5, "NOT_FOUND", False),
    (6, "ALREADY_EXISTS", False),
    (7, "PERMISSION_DENIED", False),
    (8, "RESOURCE_EXHAUSTED", False),
    (9, "FAILED_PRECONDITION", False),
    (10, "ABORTED", False),
    (11, "OUT_OF_RANGE", False),
    (12, "UNIMPLEMENTED", True),
    (13, "INTERNAL", True),
    (14, "UNAVAILABLE", True),
    (15, "DATA_LOSS", True),
    (16, "UNAUTHENTICATED", False),
    (17, "17", True),
]


@pytest.mark.parametrize(("status", "code", "servers"), GRPC_STATUSES)
def test_grpc_statuses_that_are_errors(status: int, code: str, servers: bool) -> None:
    for server, error in ((True, servers), (False, True)):
        description = describe(exchange("grpc", server=server, status=status))
        assert description.attributes["rpc.response.status_code"] == code
        assert description.attributes.get("error.type") == (code if error else None)
        assert description.status is (StatusCode.ERROR if error else StatusCode.UNSET)


def test_a_grpc_call() -> None:
    for server, kind in ((True, SpanKind.SERVER), (False, SpanKind.CLIENT)):
        call = exchange("grpc", server=server, rpc_service="shop.Orders", rpc_method="Place", status=0)
        description = describe(call)
        assert (description.name, description.kind) == ("shop.Orders/Place", kind)
        assert description.status is StatusCode.UNSET
        assert description.attributes == {
            "rpc.system.name": "grpc",
            "rpc.method": "shop.Orders/Place",
            "rpc.response.status_code": "OK",
            "network.protocol.name": "http",
            "network.protocol.version": "2",
        }


def test_a_grpc_method_that_the_server_does_not_have_names_no_span() -> None:
    asked: dict[str, Any] = {"rpc_service": "a.B", "rpc_method": "Guess", "status": 12}
    description = describe(exchange("grpc", **asked))
    assert description.name == "grpc"
    assert description.attributes["rpc.method"] == "_OTHER"
    assert description.attributes["rpc.method_original"] == "a.B/Guess"
    assert describe(exchange("grpc", server=False, **asked)).name == "a.B/Guess"


def test_a_grpc_call_whose_headers_were_not_seen() -> None:
    description = describe(exchange("grpc", status=0))
    assert (description.name, description.attributes["rpc.method"]) == ("grpc", "_OTHER")


def test_a_database_statement() -> None:
    statement = exchange(
        "postgresql",
        server=False,
        peer_address="10.0.0.5",
        peer_port=5432,
        operation="SELECT",
        collection="orders",
        namespace="shop",
        query_text="SELECT * FROM orders WHERE id = ?",
        returned_rows=0,
    )
    description = describe(statement)
    assert (description.name, description.kind) == ("SELECT orders", SpanKind.CLIENT)
    assert description.attributes == {
        "db.system.name": "postgresql",
        "db.operation.name": "SELECT",
        "db.collection.name": "orders",
        "db.namespace": "shop",
        "db.query.text": "SELECT * FROM orders WHERE id = ?",
        "db.response.returned_rows": 0,
        "server.address": "10.0.0.5",
        "network.peer.address": "10.0.0.5",
        "network.peer.port": 5432,
    }


@pytest.mark.parametrize(
    ("protocol", "fields", "name"),
    [
        ("mysql", {"operation": "INSERT", "collection": "orders"}, "INSERT orders"),
        ("redis", {"operation": "GET", "namespace": "3"}, "GET"),
        ("postgresql", {"operation": "BEGIN", "namespace": "shop"}, "BEGIN"),
        ("postgresql", {"collection": "orders"}, "orders"),
        ("mysql", {}, "mysql"),
    ],
)
def test_names_of_statements(protocol: str, fields: dict[str, Any], name: str) -> None:
    assert describe(exchange(protocol, server=False, **fields)).name == name


@pytest.mark.parametrize(
    ("protocol", "usual"),
    [("postgresql", 5432), ("mysql", 3306), ("redis", 6379)],
)
def test_a_databases_usual_port_goes_without_saying(protocol: str, usual: int) -> None:
    for port, said in ((usual, None), (usual + 1, usual + 1)):
        found = describe(exchange(protocol, server=False, peer_address="db", peer_port=port)).attributes
        assert found.get("server.port") == said


@pytest.mark.parametrize(("protocol", "code"), [("postgresql", "23505"), ("mysql", "1062"), ("redis", "WRONGTYPE")])
def test_an_error_of_a_database(protocol: str, code: str) -> None:
    description = describe(exchange(protocol, server=False, operation="SET", error=True, error_code=code))
    assert description.status is StatusCode.ERROR
    assert description.attributes["db.response.status_code"] == code
    assert description.attributes["error.type"] == code


@pytest.mark.parametrize("protocol", ["http", "grpc", "postgresql"])
def test_an_error_without_a_code(protocol: str) -> None:
    description = describe(exchange(protocol, error=True))
    assert description.status is StatusCode.ERROR
    assert description.attributes["error.type"] == "_OTHER"


@pytest.mark.parametrize("protocol", ["http", "grpc", "redis"])
@pytest.mark.parametrize("end", ["connection_closed", "process_exited"])
def test_an_exchange_that_was_broken_off_is_an_error(protocol: str, end: Any) -> None:
    description = describe(exchange(protocol, end=end))
    assert description.status is StatusCode.ERROR
    assert description.attributes["error.type"] == description.attributes["spandial.end"] == end
    assert description.message is not None


def test_an_answer_that_was_broken_off_keeps_its_status() -> None:
    broken = describe(exchange(method="GET", status=200, end="connection_closed"))
    assert (broken.attributes["http.response.status_code"], broken.attributes["error.type"]) == (
        200,
        "connection_closed",
    )
    failed = describe(exchange(method="GET", status=503, end="connection_closed"))
    assert failed.attributes["error.type"] == "503"


def test_an_answer_that_was_not_seen_is_said_and_no_error() -> None:
    description = describe(exchange(method="GET", end="no_answer_seen"))
    assert description.status is StatusCode.UNSET
    assert "error.type" not in description.attributes
    assert description.attributes["spandial.end"] == "no_answer_seen"


def test_an_answered_exchange_does_not_say_so() -> None:
    assert "spandial.end" not in describe(exchange()).attributes


def _current_names() -> set[str]:
    """Every attribute of the installed conventions that is not deprecated."""
    names = set()
    for package in (attributes, importlib.import_module(f"{_incubating.__name__}.attributes")):
        for module in pkgutil.iter_modules(package.__path__):
            source = importlib.import_module(f"{package.__name__}.{module.name}")
            names |= {value for key, value in vars(source).items() if key.isupper() and isinstance(value, str)}
    return names - {"rpc.system", "rpc.service", "rpc.grpc.status_code", "db.system", "db.name", "db.statement"}


CURRENT = _current_names()


@given(any_exchange)
def test_any_exchange_is_a_span_of_the_conventions(each: Exchange) -> None:
    name, kind, found, status, message = describe(each)
    assert name
    assert kind is (SpanKind.SERVER if each.server else SpanKind.CLIENT)
    assert set(found) <= CURRENT | {"spandial.end"}
    assert all(isinstance(value, (str, int)) for value in found.values())
    assert (status is StatusCode.ERROR) == ("error.type" in found)
    assert message is None or status is StatusCode.ERROR


@given(any_exchange)
def test_what_names_a_span_of_http_or_grpc_is_no_path(each: Exchange) -> None:
    name = describe(each).name
    if each.protocol == "http":
        assert name in {each.method, "HTTP"}
    elif each.protocol == "grpc":
        assert name in {f"{each.rpc_service}/{each.rpc_method}", "grpc"}


def test_the_schema_is_one_that_the_conventions_know() -> None:
    assert SCHEMA_URL in {schema.value for schema in schemas.Schemas}
