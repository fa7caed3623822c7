"""What an un-hooked service does while it serves a request is in the request's trace, below the request's span."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.agent_process import AgentProcess
from tests.e2e.databases import Redis
from tests.e2e.programs.process import Program
from tests.e2e.services import nginx
from tests.e2e.test_spans import found, received
from tests.spandial_agent.spans.otlp_receiver import OtlpReceiver

pytest_plugins = ["tests.e2e.programs.fixtures"]
pytestmark = [pytest.mark.kernel, pytest.mark.e2e]

SHOP = f"shop-{os.getpid()}"


@pytest.mark.needs("nginx")
def test_statements_and_calls_are_children_of_the_request(
    receiver: OtlpReceiver, make_agent: Callable[..., AgentProcess], redis_server: Redis, tmp_path: Path
) -> None:
    agent = make_agent(
        SPANDIAL_CAPTURE="socket",
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint("http"),
        OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
    )
    with nginx([agent], tmp_path) as neighbour:
        command = [sys.executable, "-m", "tests.e2e.programs.shop_server"]
        port = str(redis_server.address()["port"])
        with Program([*command, port, neighbour.url], {"OTEL_SERVICE_NAME": SHOP}) as shop:
            found(agent, SHOP)
            contexts = [""] * 10 + [f"00-{n:032x}-{n:016x}-{n % 2:02x}" for n in range(1, 41)]
            with httpx.Client() as client:
                for context in contexts:
                    headers = {"traceparent": context} if context else {}
                    assert client.get(f"http://127.0.0.1:{shop.ready['port']}/price", headers=headers).text == "ok"
            spans = received(receiver, 6 * 30, SHOP)  # redis-py says hello with three commands
    requests = {span.span_id: span for span in spans if span.kind == "server"}
    assert len(requests) == 30
    assert sorted(span.parent_span_id for span in requests.values()) == [0] * 10 + list(range(1, 41, 2))
    children = [span for span in spans if span.kind == "client"]
    assert {span.trace_id == requests[span.parent_span_id].trace_id for span in children} == {True}
    kinds = Counter(
        (span.parent_span_id, span.attributes.get("db.system.name", "http")) for span in children if span.name == "GET"
    )
    assert kinds == {(request, system): 1 for request in requests for system in ("redis", "http")}
    assert {span.attributes["url.full"] for span in children if "url.full" in span.attributes} == {
        f"{neighbour.url}/stock"
    }
    for span in children:
        request = requests[span.parent_span_id]
        assert request.start_ns <= span.start_ns <= span.end_ns <= request.end_ns
