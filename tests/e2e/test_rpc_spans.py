"""Un-hooked gRPC and HTTP/2 servers and clients: every call is a span on either side, with its status and its times."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.agent_process import AgentProcess
from tests.e2e.programs.process import Load
from tests.e2e.rpc import grpc_echo, h2load, node_h2c
from tests.e2e.test_spans import PARENT, TRACE_ID, found, received
from tests.spandial_agent.spans.otlp_receiver import OtlpReceiver, ReceivedSpan

pytest_plugins = ["tests.e2e.programs.fixtures"]
pytestmark = [pytest.mark.kernel, pytest.mark.e2e]

SERVER, CLIENT = f"rpc-server-{os.getpid()}", f"rpc-client-{os.getpid()}"
STATUSES = {0: "OK", 5: "NOT_FOUND", 13: "INTERNAL"}


@pytest.fixture
def agent(receiver: OtlpReceiver, make_agent: Callable[..., AgentProcess]) -> AgentProcess:
    endpoint = receiver.endpoint("http")
    return make_agent(OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf")


def by_parent(spans: list[ReceivedSpan]) -> dict[tuple[int, int], ReceivedSpan]:
    return {(span.trace_id, span.parent_span_id): span for span in spans}


def of_grpc(spans: list[ReceivedSpan]) -> Iterator[tuple[str, str, str]]:
    for span in spans:
        yield (span.name, str(span.attributes["rpc.response.status_code"]), span.status)


def test_every_call_is_a_span_of_its_server_and_one_of_its_client(agent: AgentProcess, receiver: OtlpReceiver) -> None:
    agent.set(100, mode="strict")
    with (
        grpc_echo(environment={"OTEL_SERVICE_NAME": SERVER}) as server,
        Load("grpc", {"OTEL_SERVICE_NAME": CLIENT}) as load,
    ):
        found(agent, SERVER)
        found(agent, CLIENT)
        for status in STATUSES:
            load.run("calls", address=server.address, count=40, concurrency=4, status=status)
        traced = load.run("calls", address=server.address, count=100, concurrency=16, seed=3, each=True).each
        for method in ("ServerStream", "ClientStream"):
            load.run("calls", address=server.address, count=20, method=method, messages=50)
        load.run("calls", address=server.address, count=10, method="Nothing")
        count = 3 * 40 + 100 + 2 * 20 + 10
        served, called = received(receiver, count, SERVER), received(receiver, count, CLIENT)
    assert {span.kind for span in served} == {"server"}
    assert {span.kind for span in called} == {"client"}
    expected = Counter(
        {
            ("echo.Echo/Unary", "OK", "unset"): 140,
            ("echo.Echo/Unary", "NOT_FOUND", "unset"): 40,
            ("echo.Echo/Unary", "INTERNAL", "error"): 40,
            ("echo.Echo/ServerStream", "OK", "unset"): 20,
            ("echo.Echo/ClientStream", "OK", "unset"): 20,
        }
    )
    assert Counter(of_grpc(served)) == expected | {("grpc", "UNIMPLEMENTED", "error"): 10}
    failed = {("echo.Echo/Unary", "NOT_FOUND", "unset"): ("echo.Echo/Unary", "NOT_FOUND", "error")}
    at_client = Counter({failed.get(key, key): number for key, number in expected.items()})
    assert Counter(of_grpc(called)) == at_client | {("echo.Echo/Nothing", "UNIMPLEMENTED", "error"): 10}

    contexts = [operation.traceparent.split("-")[1:3] for operation in traced]
    parents = {(int(trace_id, 16), int(span_id, 16)) for trace_id, span_id in contexts}
    on_server, on_client = by_parent(served), by_parent(called)
    assert len(parents) == 100
    slack = 1_000_000
    for parent in parents:
        inner, outer = on_server[parent], on_client[parent]
        # What is sent may be received before its sender's system call has ended.
        assert outer.start_ns - slack <= inner.start_ns <= inner.end_ns <= outer.end_ns + slack
        port = int(server.address.rpartition(":")[2])
        assert inner.attributes["network.peer.address"] == outer.attributes["network.peer.address"] == "127.0.0.1"
        assert outer.attributes["network.peer.port"] == outer.attributes["server.port"] == port


def test_http2_that_is_not_grpc_is_http(agent: AgentProcess, receiver: OtlpReceiver) -> None:
    agent.set(100, mode="strict")
    with node_h2c(environment={"OTEL_SERVICE_NAME": SERVER}) as server:
        found(agent, SERVER)
        for path, requests in (("/pay", 400), ("/status/503", 100), ("/status/404", 100)):
            with h2load(server, requests, PARENT, path=path, connections=4, streams=8) as tool:
                tool.run()
        spans = received(receiver, 600, SERVER)
    assert {(span.name, span.kind, span.trace_id) for span in spans} == {("GET", "server", TRACE_ID)}
    assert {span.attributes["network.protocol.version"] for span in spans} == {"2"}
    bodies = {(span.attributes["http.request.body.size"], span.attributes["http.response.body.size"]) for span in spans}
    assert bodies == {(0, len('{"paid": 1}'))}
    what = Counter(
        (span.attributes["url.path"], span.attributes["http.response.status_code"], span.status) for span in spans
    )
    assert what == {("/pay", 200, "unset"): 400, ("/status/503", 503, "error"): 100, ("/status/404", 404, "unset"): 100}
    assert all(span.start_ns < span.end_ns for span in spans)


def test_half_of_the_calls_are_kept_and_each_has_its_status(
    agent: AgentProcess, receiver: OtlpReceiver, tmp_path: Path
) -> None:
    agent.set(50, mode="strict")
    with grpc_echo(environment={"OTEL_SERVICE_NAME": SERVER}) as server:
        found(agent, SERVER)
        with h2load(server, 2000, path="/echo.Echo/Unary", connections=4, streams=8, message_in=tmp_path) as tool:
            tool.run()
        pid = server.process.pid
        target = next(target for target in agent.get("/stats")["targets"] if target["pid"] == pid)
        kept = target["kinds"]["grpc"]["kernel"]["kept"]
        spans = received(receiver, kept, SERVER)
    assert 850 < kept < 1150
    assert set(of_grpc(spans)) == {("echo.Echo/Unary", "OK", "unset")}
