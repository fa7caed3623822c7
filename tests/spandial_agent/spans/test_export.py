"""Exchanges to an endpoint that takes them, fails, hangs, or is not there."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from structlog.testing import capture_logs

from spandial_agent.errors import SpandialError
from spandial_agent.spans.export import ExportCounts, Exporter
from spandial_agent.spans.otlp import Outcome, protocol_from_environ
from tests.agent_process import eventually
from tests.spandial_agent.spans.exchanges import exchange
from tests.spandial_agent.spans.offering import CHECKOUT, offered, settled
from tests.spandial_agent.spans.otlp_receiver import free_ports

PROTOCOLS = ["grpc", "http/protobuf"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_nothing_grows_where_nobody_listens(make_exporter: Callable[..., Exporter], protocol: str) -> None:
    exporter = make_exporter(f"http://127.0.0.1:{free_ports(1)[0]}", protocol, timeout_s=0.3, queue_size=2000)
    with capture_logs() as logs:
        offered(exporter, 5000)
        counts = exporter.counts()
        assert counts.queued <= 2000
        assert counts.dropped_queue_full >= 3000
        eventually(lambda: exporter._attempts >= 2, "a batch was tried twice")
        assert exporter.counts() == counts
        assert sum(counts) == 5000
    assert [line["event"] for line in logs] == ["spans cannot be exported"]
    assert exporter.trouble.startswith("no spans are exported since ")
    assert f"{counts.queued} wait, and {counts.dropped_queue_full} are lost" in exporter.trouble


@pytest.fixture
def silent() -> Iterator[str]:
    """An endpoint that accepts connections and never answers."""
    listener = socket.create_server(("127.0.0.1", 0))
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    listener.close()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_closing_does_not_wait_for_a_collector_that_hangs(
    silent: str, make_exporter: Callable[..., Exporter], protocol: str
) -> None:
    exporter = make_exporter(silent, protocol, timeout_s=60)
    offered(exporter, 1000)
    eventually(lambda: exporter._batch, "a batch is on its way")
    exporter.close(0.2)
    assert exporter.counts() == ExportCounts(0, exported=0, dropped_queue_full=0, export_failed=0, unsent=1000)
    assert not exporter.offer(exchange(), CHECKOUT)
    assert exporter.counts().unsent == 1001


AGAIN = Outcome("again", said="503 not now")


class Collector(SpanExporter):
    """Takes spans as the test says."""

    def __init__(self) -> None:
        self.answers: list[SpanExportResult | Outcome | Exception] = []
        self.batches: list[list[ReadableSpan]] = []
        self.go_on = threading.Event()
        self.go_on.set()
        self.shut_down = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult | Outcome:  # type: ignore[override]
        self.go_on.wait(30)
        answer = self.answers.pop(0) if self.answers else SpanExportResult.SUCCESS
        if isinstance(answer, Exception):
            raise answer
        self.batches.append(list(spans))
        return answer

    def shutdown(self) -> None:
        self.shut_down += 1
        self.go_on.set()


@pytest.fixture
def collector() -> Collector:
    return Collector()


@pytest.fixture
def make(collector: Collector) -> Iterator[Callable[..., Exporter]]:
    exporters: list[Exporter] = []

    def make(**options: Any) -> Exporter:
        exporters.append(Exporter(collector, **{"delay_s": 0.01, "pause_s": 0.01, **options}))
        return exporters[-1]

    yield make
    for exporter in exporters:
        exporter.close(0)


def test_spans_are_sent_in_batches_and_in_order(collector: Collector, make: Callable[..., Exporter]) -> None:
    exporter = make(batch_size=10, delay_s=60.0)
    offered(exporter, 25)
    exporter.close()
    assert [len(batch) for batch in collector.batches] == [10, 10, 5]
    ids = [span.context.span_id for batch in collector.batches for span in batch if span.context]
    assert ids == list(range(1, 26))


def test_a_span_does_not_wait_for_its_batch_to_fill(collector: Collector, make: Callable[..., Exporter]) -> None:
    exporter = make(batch_size=1000)
    offered(exporter, 1)
    assert settled(exporter).exported == 1


def test_what_is_on_its_way_takes_room_in_the_queue(collector: Collector, make: Callable[..., Exporter]) -> None:
    collector.go_on.clear()
    exporter = make(batch_size=4, queue_size=6)
    offered(exporter, 4)
    eventually(lambda: len(exporter._batch) == 4, "a batch is on its way")
    offered(exporter, 10, 100)
    assert exporter.counts() == ExportCounts(queued=6, exported=0, dropped_queue_full=8, export_failed=0)
    collector.go_on.set()
    assert settled(exporter) == ExportCounts(queued=0, exported=6, dropped_queue_full=8, export_failed=0)


def test_who_fills_the_queue_takes_no_place_from_others_and_is_named(
    collector: Collector, make: Callable[..., Exporter]
) -> None:
    collector.go_on.clear()
    exporter = make(batch_size=4, queue_size=100)
    offered(exporter, 4)
    eventually(lambda: len(exporter._batch) == 4, "a batch is on its way")
    offered(exporter, 500, 1000, uid=64321)
    offered(exporter, 30, 100, uid=1000)
    offered(exporter, 500, 2000, uid=64321)
    assert exporter.counts() == ExportCounts(queued=100, exported=0, dropped_queue_full=934, export_failed=0)
    assert "user 64321 had 66 of 100." in exporter.crowded.trouble
    collector.go_on.set()
    settled(exporter)
    ids = [span.context.span_id for batch in collector.batches for span in batch if span.context]
    assert [number for number in ids if 100 <= number < 1000] == list(range(100, 130))
    assert len(ids) == 100


def test_failures_are_counted_and_said_once_per_change(collector: Collector, make: Callable[..., Exporter]) -> None:
    failure, success = SpanExportResult.FAILURE, SpanExportResult.SUCCESS
    collector.answers = [success, failure, OSError("no route"), failure, success, success, failure]
    exporter = make(batch_size=1)
    with capture_logs() as logs:
        offered(exporter, 8)
        assert settled(exporter) == ExportCounts(queued=0, exported=4, dropped_queue_full=0, export_failed=4)
        exporter.close()
    failing, working = "spans cannot be exported", "spans are exported again"
    assert [line["event"] for line in logs] == [failing, working, failing, working]


def test_the_sdks_own_words_become_the_reason(make: Callable[..., Exporter], collector: Collector) -> None:
    class Refusing(Collector):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            logging.getLogger("opentelemetry.exporter.otlp.some").error("refused by %s", "somebody")
            return SpanExportResult.FAILURE

    exporter = Exporter(Refusing(), delay_s=0.01, pause_s=0.01)
    with capture_logs() as logs:
        offered(exporter, 1)
        settled(exporter)
        exporter.close()
    assert logs[0]["reason"] == "refused by somebody"


def test_a_malformed_trace_state_is_left_out(make: Callable[..., Exporter], collector: Collector) -> None:
    exporter = make()
    exporter.offer(exchange(trace_state="\N{SNOWMAN} no tracestate"), CHECKOUT)
    exporter.close()
    ((span,),) = collector.batches
    assert span.context is not None
    assert not span.context.trace_state


def test_closing_flushes_and_shuts_the_exporter_down_once(make: Callable[..., Exporter], collector: Collector) -> None:
    exporter = make(batch_size=10, delay_s=60.0)
    offered(exporter, 15)
    exporter.close()
    exporter.close()
    assert exporter.counts().exported == 15
    assert collector.shut_down == 1


def test_a_failure_while_closing_gives_the_rest_up(make: Callable[..., Exporter], collector: Collector) -> None:
    collector.answers = [AGAIN, AGAIN]
    exporter = make(batch_size=10, delay_s=60.0)
    collector.go_on.clear()
    offered(exporter, 35)
    threading.Timer(0.1, collector.go_on.set).start()
    exporter.close()
    assert exporter.counts() == ExportCounts(0, exported=0, dropped_queue_full=0, export_failed=0, unsent=35)


def test_what_may_be_taken_later_is_tried_until_it_is(collector: Collector, make: Callable[..., Exporter]) -> None:
    collector.answers = [AGAIN] * 5
    exporter = make(batch_size=10, queue_size=30)
    with capture_logs() as logs:
        offered(exporter, 100)
        counts = settled(exporter)
    assert counts.exported + counts.dropped_queue_full == 100
    assert counts.exported >= 30
    assert [line["event"] for line in logs] == ["spans cannot be exported", "spans are exported again"]
    assert logs[0]["reason"] == "503 not now"
    assert len(collector.batches) == 5 + counts.exported // 10
    first = [[span.context.span_id for span in batch if span.context] for batch in collector.batches[:6]]
    assert first == [list(range(1, 11))] * 6


def test_a_collector_is_not_asked_before_it_said(collector: Collector, make: Callable[..., Exporter]) -> None:
    collector.answers = [AGAIN._replace(after_s=3600.0)]
    exporter = make(batch_size=10)
    offered(exporter, 10)
    eventually(lambda: collector.batches, "it was asked once")
    offered(exporter, 20, 100)
    assert exporter.counts().queued == 30
    exporter.close()  # tries once more, all the same
    assert exporter.counts().exported == 30


def test_what_a_collector_throws_away_is_lost_and_said(collector: Collector, make: Callable[..., Exporter]) -> None:
    collector.answers = [Outcome("taken", rejected=7, said="quota\\x1b"), Outcome("refused", said="400")]
    exporter = make(batch_size=10, pause_s=0.0)
    with capture_logs() as logs:
        offered(exporter, 30)
        assert settled(exporter) == ExportCounts(0, 13, dropped_queue_full=0, export_failed=10, rejected=7)
    assert logs[0]["event"] == "the collector rejected spans"
    assert (logs[0]["rejected"], logs[0]["of"], logs[0]["said"]) == (7, 10, "quota\\x1b")


def test_an_export_that_raises_where_nothing_should_is_started_again(
    collector: Collector, make: Callable[..., Exporter], monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = make(batch_size=10)
    monkeypatch.setattr(exporter, "_tell", lambda *_: 1 / 0)
    offered(exporter, 10)
    eventually(lambda: "ZeroDivisionError" in exporter.thread.trouble, "the failure is told")
    monkeypatch.undo()
    offered(exporter, 10, 100)
    assert settled(exporter).exported == 20


class Picky(Collector):
    """Refuses whatever holds a span that it does not like.

    Args:
        poisoned: the ids of those spans; None: all.
    """

    def __init__(self, poisoned: set[int] | None, answer: Outcome | Exception) -> None:
        super().__init__()
        self._poisoned, self._answer = poisoned, answer
        self.refused = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult | Outcome:  # type: ignore[override]
        ids = {span.context.span_id for span in spans if span.context}
        if self._poisoned is None or ids & self._poisoned:
            self.refused += 1
            if isinstance(self._answer, Exception):
                raise self._answer
            return self._answer
        return super().export(spans)


MALFORMED = Outcome("refused", said="400 one of them is malformed", in_part=True)


@pytest.mark.parametrize("answer", [MALFORMED, TypeError("cannot be encoded")])
def test_a_span_for_which_a_batch_is_refused_costs_only_itself(answer: Outcome | Exception) -> None:
    collector = Picky({7, 300, 777}, answer)
    exporter = Exporter(collector, batch_size=512, delay_s=0.01, pause_s=0.0)
    offered(exporter, 1024)
    assert settled(exporter) == ExportCounts(0, exported=1021, dropped_queue_full=0, export_failed=3)
    exporter.close(0)
    ids = [span.context.span_id for batch in collector.batches for span in batch if span.context]
    assert len(ids) == len(set(ids)) == 1021


def test_a_collector_that_refuses_everything_is_not_asked_for_every_span() -> None:
    collector = Picky(None, MALFORMED)
    exporter = Exporter(collector, batch_size=512, delay_s=0.01, pause_s=0.0)
    offered(exporter, 5 * 512)
    assert settled(exporter) == ExportCounts(0, exported=0, dropped_queue_full=0, export_failed=5 * 512)
    exporter.close(0)
    assert collector.refused <= 5 + 2 * 20


def test_what_is_refused_for_another_reason_is_not_halved(collector: Collector, make: Callable[..., Exporter]) -> None:
    collector.answers = [Outcome("refused", said="401 who are you?")]
    exporter = make(batch_size=10)
    offered(exporter, 10)
    assert settled(exporter).export_failed == 10
    assert len(collector.batches) == 1


def test_spans_may_be_offered_from_several_threads(make: Callable[..., Exporter], collector: Collector) -> None:
    exporter = make(batch_size=7, queue_size=50)
    threads = [threading.Thread(target=offered, args=(exporter, 500, start)) for start in (1, 1000, 2000, 3000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts = settled(exporter)
    assert sum(counts) == 2000
    assert counts.exported == sum(len(batch) for batch in collector.batches)
    assert counts.export_failed == 0


def test_any_exporter_of_the_sdk_will_do() -> None:
    memory = InMemorySpanExporter()
    exporter = Exporter(memory)
    offered(exporter, 3)
    exporter.close()
    assert len(memory.get_finished_spans()) == 3


@pytest.mark.parametrize(
    ("environ", "enabled", "protocol"),
    [
        ({}, False, None),
        ({}, True, "http/protobuf"),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, False, "http/protobuf"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, False, "http/protobuf"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, False, None),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318"}, False, "http/protobuf"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_TRACES_EXPORTER": "none"}, True, None),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, False, None),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, True, "grpc"),
        (
            {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"},
            True,
            "http/protobuf",
        ),
    ],
)
def test_the_standard_variables_say_where_to(environ: dict[str, str], enabled: bool, protocol: str | None) -> None:
    assert protocol_from_environ(environ, enabled) == protocol


def test_without_an_endpoint_nothing_is_exported() -> None:
    assert Exporter.from_environ() is None


@pytest.mark.parametrize(
    "environ",
    [
        {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
        {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TIMEOUT": "soon"},
        {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_COMPRESSION": "snappy"},
    ],
)
def test_variables_that_make_no_sense_are_named(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317")
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SpandialError, match="OTEL_EXPORTER_OTLP_"):
        Exporter.from_environ()


def test_an_agent_that_exports_nothing_loads_neither_grpc_nor_protobuf() -> None:
    program = (
        "import sys; from spandial_agent.spans import export, resource, conventions, record; "
        "export.Exporter.from_environ(); "
        "print(sorted({'grpc', 'google.protobuf', 'httpx', 'requests'} & set(sys.modules)))"
    )
    environ = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    printed = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == "[]"
