"""Spans to an OTLP receiver that somebody else wrote, while it answers and while it does not."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from spandial_agent.spans.export import ExportCounts, Exporter
from tests.agent_process import eventually
from tests.spandial_agent.spans.exchanges import START_NS, exchange
from tests.spandial_agent.spans.offering import CHECKOUT, PAYMENT, offered, settled
from tests.spandial_agent.spans.otlp_receiver import OtlpReceiver, receiver_command

PROTOCOLS = ["grpc", "http/protobuf"]


@pytest.fixture(scope="module")
def _has_receiver() -> None:
    if receiver_command() is None:
        required = os.environ.get("SPANDIAL_REQUIRE_KERNEL") == "1"
        (pytest.fail if required else pytest.skip)("no ddapm-test-agent that speaks OTLP: run deploy/setup")


@pytest.fixture(scope="module")
def running(_has_receiver: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OtlpReceiver]:
    """A receiver that the tests share; each looks for its own spans."""
    receiver = OtlpReceiver(tmp_path_factory.mktemp("receiver"))
    try:
        receiver.start()
        yield receiver
    finally:
        receiver.kill()


@pytest.fixture
def receiver(_has_receiver: None, tmp_path: Path) -> Iterator[OtlpReceiver]:
    """A receiver that is not running yet."""
    receiver = OtlpReceiver(tmp_path)
    yield receiver
    receiver.kill()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_spans_come_out_as_they_were_offered(
    running: OtlpReceiver, make_exporter: Callable[..., Exporter], protocol: str
) -> None:
    mark = f"mark-{protocol}"
    exporter = make_exporter(running.endpoint(protocol), protocol)
    received = exchange(
        trace_id=0x0AF7651916CD43DD8448EB211C80319C,
        span_id=0xB7AD6B7169203331,
        parent_span_id=0x00F067AA0BA902B7,
        trace_state="ot=rv:abcdef01234567,vendor=x",
        method="GET",
        path=f"/{mark}",
        status=503,
        peer_address="10.0.0.7",
        peer_port=40000,
    )
    sent = exchange(
        "postgresql",
        server=False,
        trace_id=received.trace_id,
        span_id=2,
        parent_span_id=received.span_id,
        operation="SELECT",
        collection=mark,
        end="connection_closed",
        start_ns=START_NS + 1,
        end_ns=START_NS + 2,
    )
    assert exporter.offer(received, CHECKOUT)
    assert exporter.offer(sent, PAYMENT)
    exporter.close()
    assert exporter.counts() == ExportCounts(queued=0, exported=2, dropped_queue_full=0, export_failed=0)

    found = {span.name: span for span in running.spans() if mark in str(span.attributes)}
    assert set(found) == {"GET", f"SELECT {mark}"}
    server, client = found["GET"], found[f"SELECT {mark}"]
    assert (server.kind, client.kind) == ("server", "client")
    assert (server.trace_id, server.span_id, server.parent_span_id) == (*received[2:4], received.parent_span_id)
    assert (client.trace_id, client.span_id, client.parent_span_id) == (received.trace_id, 2, received.span_id)
    assert (server.remote_parent, client.remote_parent) == (True, False)
    assert (server.trace_state, client.trace_state) == (received.trace_state, "")
    assert (server.start_ns, server.end_ns) == (START_NS, START_NS + 1_000_000)
    assert (client.start_ns, client.end_ns) == (START_NS + 1, START_NS + 2)
    assert (server.status, server.message) == ("error", "")
    assert (client.status, client.message) == ("error", "the connection closed before the answer had ended")
    assert server.attributes == {
        "http.request.method": "GET",
        "url.path": f"/{mark}",
        "url.scheme": "http",
        "http.response.status_code": 503,
        "client.address": "10.0.0.7",
        "network.peer.address": "10.0.0.7",
        "network.peer.port": 40000,
        "error.type": "503",
    }
    assert server.resource == dict(CHECKOUT.attributes)
    assert client.resource == dict(PAYMENT.attributes)
    assert {server.scope, client.scope} == {"spandial"}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_thousands_of_spans_all_arrive_once(
    running: OtlpReceiver, make_exporter: Callable[..., Exporter], protocol: str
) -> None:
    count, first = 5000, 1_000_000 if protocol == "grpc" else 2_000_000
    exporter = make_exporter(running.endpoint(protocol), protocol, timeout_s=30)
    offered(exporter, count, first)
    counts = settled(exporter)
    assert counts == ExportCounts(queued=0, exported=count, dropped_queue_full=0, export_failed=0)
    wanted = range(first, first + count)
    assert sorted(span.span_id for span in running.spans() if span.span_id in wanted) == list(wanted)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_collector_that_appears_late_gets_everything(
    receiver: OtlpReceiver, make_exporter: Callable[..., Exporter], protocol: str
) -> None:
    exporter = make_exporter(receiver.endpoint(protocol), protocol, queue_size=3000)
    offered(exporter, 2000)
    eventually(lambda: exporter._attempts >= 2, "a batch was tried twice")
    assert exporter.counts() == ExportCounts(2000, exported=0, dropped_queue_full=0, export_failed=0)
    receiver.start()
    assert settled(exporter).exported == 2000
    assert len({span.span_id for span in receiver.spans()}) == 2000


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_collector_that_is_killed_and_started_again(
    receiver: OtlpReceiver, make_exporter: Callable[..., Exporter], protocol: str
) -> None:
    receiver.start()
    exporter = make_exporter(receiver.endpoint(protocol), protocol, queue_size=1000)
    with capture_logs() as logs:
        offered(exporter, 300)
        assert settled(exporter).exported == 300
        assert len(receiver.spans()) == 300
        receiver.kill()
        offered(exporter, 2000, 1000)
        eventually(lambda: exporter._attempts >= 2, "a batch was tried twice")
        assert exporter.counts() == ExportCounts(1000, exported=300, dropped_queue_full=1000, export_failed=0)
        receiver.start()
        assert settled(exporter).exported == 1300
    assert len({span.span_id for span in receiver.spans()}) == 1000  # it has forgotten those from before
    assert [line["event"] for line in logs] == ["spans cannot be exported", "spans are exported again"]
    assert logs[0]["reason"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_collector_that_is_stopped_in_mid_air(
    receiver: OtlpReceiver, make_exporter: Callable[..., Exporter], protocol: str
) -> None:
    receiver.start()
    exporter = make_exporter(receiver.endpoint(protocol), protocol, queue_size=600)
    offered(exporter, 100)
    assert settled(exporter).exported == 100
    receiver.signal(signal.SIGSTOP)
    offered(exporter, 1000, 1000)
    eventually(lambda: exporter._attempts >= 1, "a batch timed out")
    assert exporter.counts() == ExportCounts(600, exported=100, dropped_queue_full=400, export_failed=0)
    receiver.signal(signal.SIGCONT)
    assert settled(exporter).exported == 700
    # What timed out may have arrived all the same, and then comes twice.
    assert len({span.span_id for span in receiver.spans()}) == 700
