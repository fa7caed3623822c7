"""What endpoints answer, by HTTP and by gRPC."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from spandial_agent.spans.export import ExportCounts, Exporter
from spandial_agent.spans.otlp import Outcome, outcome_of_status
from tests.agent_process import eventually
from tests.spandial_agent.spans.offering import offered, settled


def response(rejected: int, message: str) -> Any:
    answer = trace_service_pb2.ExportTraceServiceResponse()
    answer.partial_success.rejected_spans = rejected
    answer.partial_success.error_message = message
    return answer


class Endpoint(http.server.ThreadingHTTPServer):
    """Answers as the test says, and then 200."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[tuple[int, dict[str, str], bytes]] = []
        self.asked_at: list[float] = []


class Handler(http.server.BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked_at.append(time.monotonic())
        status, headers, body = self.server.answers.pop(0) if self.server.answers else (200, {}, b"")
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with Endpoint() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_spans_that_an_http_endpoint_rejects_are_counted(
    endpoint: Endpoint, make_exporter: Callable[..., Exporter]
) -> None:
    endpoint.answers = [(200, {}, response(7, "quota").SerializeToString())]
    exporter = make_exporter(f"http://127.0.0.1:{endpoint.server_port}", "http/protobuf")
    offered(exporter, 10)
    assert settled(exporter) == ExportCounts(0, exported=3, dropped_queue_full=0, export_failed=0, rejected=7)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_an_http_endpoint_is_asked_again_when_it_said(
    endpoint: Endpoint, make_exporter: Callable[..., Exporter], status: int
) -> None:
    endpoint.answers = [(status, {"Retry-After": "2"}, b"later")]
    exporter = make_exporter(f"http://127.0.0.1:{endpoint.server_port}", "http/protobuf")
    offered(exporter, 10)
    assert settled(exporter) == ExportCounts(0, exported=10, dropped_queue_full=0, export_failed=0)
    first, second = endpoint.asked_at
    assert second - first >= 1.9


@pytest.mark.parametrize("status", [302, 401, 404])
def test_what_an_http_endpoint_refuses_is_not_sent_again(
    endpoint: Endpoint, make_exporter: Callable[..., Exporter], status: int
) -> None:
    endpoint.answers = [(status, {}, b"no")]
    exporter = make_exporter(f"http://127.0.0.1:{endpoint.server_port}", "http/protobuf")
    offered(exporter, 10)
    assert settled(exporter) == ExportCounts(0, exported=0, dropped_queue_full=0, export_failed=10)
    assert len(endpoint.asked_at) == 1


@pytest.mark.parametrize("status", [400, 413, 422])
def test_what_an_http_endpoint_refuses_for_its_content_is_sent_in_halves(
    endpoint: Endpoint, make_exporter: Callable[..., Exporter], status: int
) -> None:
    endpoint.answers = [(status, {}, b"no")] * 3
    exporter = make_exporter(f"http://127.0.0.1:{endpoint.server_port}", "http/protobuf")
    offered(exporter, 4)
    assert settled(exporter) == ExportCounts(0, exported=3, dropped_queue_full=0, export_failed=1)
    assert len(endpoint.asked_at) == 5  # all, half of them, one; and what is left of each


class Service(trace_service_pb2_grpc.TraceServiceServicer):
    """Answers as the test says, and then takes everything."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.asked = 0

    def Export(self, _request: Any, context: grpc.ServicerContext) -> Any:
        self.asked += 1
        answer = self.answers.pop(0) if self.answers else response(0, "")
        if isinstance(answer, grpc.StatusCode):
            delay = RetryInfo()
            delay.retry_delay.nanos = 100_000_000
            if answer == grpc.StatusCode.RESOURCE_EXHAUSTED:
                context.set_trailing_metadata((("google.rpc.retryinfo-bin", delay.SerializeToString()),))
            context.abort(answer, "not now")
        return answer


@pytest.fixture
def service() -> Iterator[tuple[Service, str]]:
    service = Service()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield service, f"http://127.0.0.1:{port}"
    server.stop(None)


@pytest.mark.parametrize(
    ("answers", "counts", "asked"),
    [
        ([response(7, "quota")], ExportCounts(0, 3, 0, 0, rejected=7), 1),
        ([grpc.StatusCode.UNAVAILABLE], ExportCounts(0, 10, 0, 0), 2),
        ([grpc.StatusCode.RESOURCE_EXHAUSTED], ExportCounts(0, 10, 0, 0), 2),
        ([grpc.StatusCode.PERMISSION_DENIED], ExportCounts(0, 0, 0, 10), 1),
        ([grpc.StatusCode.INVALID_ARGUMENT] * 2, ExportCounts(0, 10, 0, 0), 5),
    ],
)
def test_what_a_grpc_endpoint_answers_is_obeyed(
    service: tuple[Service, str],
    make_exporter: Callable[..., Exporter],
    answers: list[Any],
    counts: ExportCounts,
    asked: int,
) -> None:
    service[0].answers = answers
    exporter = make_exporter(service[1], "grpc", timeout_s=30)
    offered(exporter, 10)
    assert settled(exporter) == counts
    eventually(lambda: service[0].asked == asked, f"it was asked {asked} times")


@given(status=st.integers(0, 999), reason=st.text(), header=st.text(), body=st.binary())
def test_whatever_is_answered_is_an_outcome(status: int, reason: str, header: str, body: bytes) -> None:
    outcome = outcome_of_status(status, reason, {"Retry-After": header}, body, 10)
    assert 0 <= outcome.rejected <= 10
    assert outcome.said.isprintable()
    assert outcome.after_s is None or 0 <= outcome.after_s <= 300


def test_a_time_to_try_again_may_be_a_date_and_has_an_end() -> None:
    def after(header: str) -> float | None:
        return outcome_of_status(503, "", {"Retry-After": header}, b"", 1).after_s

    assert after("7") == 7.0
    assert after("9999999999999") == 300.0
    assert 50 < (after(formatdate(time.time() + 100, usegmt=True)) or 0) <= 100
    assert after(formatdate(time.time() - 100, usegmt=True)) == 0.0
    assert after("soon") is None


def test_more_cannot_be_rejected_than_was_sent() -> None:
    body = response(1 << 60, "x" * 10_000).SerializeToString()
    assert outcome_of_status(200, "", {}, body, 10) == Outcome("taken", 10, "x" * 500)
