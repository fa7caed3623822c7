"""From records to exported spans: what they hold, and what is counted when there is no room."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from structlog.testing import capture_logs

from spandial.abi import EntryKind, Event, Protocol
from spandial.labels import Labels
from spandial_agent.records.conversations import Conversations
from spandial_agent.records.record import decode_entry
from spandial_agent.spans import exchanges as exchanges_module
from spandial_agent.spans import pipeline as pipeline_module
from spandial_agent.spans.exchanges import Peer
from spandial_agent.spans.export import Exporter
from spandial_agent.spans.ledger import Ledger
from spandial_agent.spans.pipeline import SpanPipeline
from spandial_agent.spans.resource import Resources
from tests.agent_process import eventually
from tests.spandial_agent.records.making import record
from tests.spandial_agent.set_clock import SetClock

SHOP = Peer(1 << 30, 1, Labels("shop"))


class Feed:
    """A pipeline, and records as the node hands them on."""

    def __init__(self, exporter: SpanExporter, queue_size: int = 100, **options: Any) -> None:
        self.exporter = Exporter(exporter, queue_size, delay_s=0.05, pause_s=0.0)
        self.pipeline = SpanPipeline(self.exporter, Resources(), **options)
        self._conversations = Conversations()

    def take(
        self,
        request: bytes,
        protocol: Protocol = Protocol.HTTP1,
        connection: int = 7,
        process: Peer = SHOP,
        **more: int,
    ) -> None:
        kind = EntryKind.HTTP if protocol == Protocol.HTTP1 else EntryKind.DB
        entry = decode_entry(record(request, protocol=protocol, kind=kind, connection=connection, **more))
        self.pipeline.take(entry, self._conversations.read(entry), process)

    def wait(self, count: int, first: int = 1) -> None:
        """So many requests that are not answered yet."""
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        for number in range(first, first + count):
            self.take(b"GET / HTTP/1.1", connection=number, time_ns=now)

    def requests(self, count: int) -> None:
        """So many whose connections closed unanswered."""
        for number in range(1, count + 1):
            self.take(b"GET / HTTP/1.1", connection=number)
            self.take(b"", connection=number, event=Event.CLOSED)

    def losses(self) -> dict[str, int]:
        """Those that are not zero."""
        return {reason: count for reason, count in self.pipeline.losses().items() if count}


@pytest.fixture
def make_feed() -> Iterator[Callable[..., Feed]]:
    feeds: list[Feed] = []

    def make(exporter: SpanExporter, *arguments: Any, **options: Any) -> Feed:
        feeds.append(Feed(exporter, *arguments, **options))
        return feeds[-1]

    yield make
    for feed in feeds:
        feed.pipeline.close()


def query(statement: str) -> bytes:
    return b"Q" + (len(statement) + 5).to_bytes(4, "big") + statement.encode() + b"\0"


def parse(name: str, statement: str) -> bytes:
    body = f"{name}\0{statement}\0".encode() + b"\0\0"
    return b"P" + (len(body) + 4).to_bytes(4, "big") + body


def bind(name: str, value: bytes) -> bytes:
    body = b"\0" + name.encode() + b"\0\0\0\0\x01" + len(value).to_bytes(4, "big") + value + b"\0\0"
    return b"B" + (len(body) + 4).to_bytes(4, "big") + body


REQUESTS = [
    (query("SELECT * FROM cards WHERE number = '4711-secret'"), Protocol.POSTGRES),
    (parse("a", "SELECT * FROM cards WHERE pin = 'secret' AND n = $1"), Protocol.POSTGRES),
    (bind("b", b"secret"), Protocol.POSTGRES),  # nobody has seen what was prepared
    (b"\x03UPDATE cards SET pin = 'secret'", Protocol.MYSQL),
    (b"\x17\x01\0\0\0\0\x01\0\0\0\0\x01\xfe\0\x06secret", Protocol.MYSQL),
    (b"*3\r\n$3\r\nSET\r\n$6\r\npin:47\r\n$6\r\nsecret\r\n", Protocol.REDIS),
    (b"*2\r\n$4\r\nAUTH\r\n$6\r\nsecret\r\n", Protocol.REDIS),
    (b"GET /cards?pin=secret HTTP/1.1\r\nauthorization: secret\r\n", Protocol.HTTP1),
]


def spans_of(feed: Feed, exporter: InMemorySpanExporter) -> list[str | None]:
    """What their statements are, once all requests have come and their connections have closed."""
    for connection, (request, protocol) in enumerate(REQUESTS, 1):
        feed.take(request, protocol, connection)
        feed.take(b"", protocol, connection, event=Event.CLOSED)
    eventually(lambda: len(exporter.get_finished_spans()) == len(REQUESTS), "all spans are exported")
    return [text(span) for span in exporter.get_finished_spans()]


def text(span: ReadableSpan) -> str | None:
    found = (span.attributes or {}).get("db.query.text")
    return None if found is None else str(found)


def test_no_data_leaves_the_machine(make_feed: Callable[..., Feed]) -> None:
    exporter = InMemorySpanExporter()
    assert spans_of(make_feed(exporter), exporter) == [
        "SELECT * FROM cards WHERE number = ?",
        "SELECT * FROM cards WHERE pin = ? AND n = $1",
        None,
        "UPDATE cards SET pin = ?",
        None,
        "SET ? ?",
        "AUTH ?",
        None,
    ]
    for span in exporter.get_finished_spans():
        assert "secret" not in span.to_json()


def test_statements_leave_as_they_were_received_where_that_is_asked_for(make_feed: Callable[..., Feed]) -> None:
    exporter = InMemorySpanExporter()
    assert spans_of(make_feed(exporter, raw_statements=True), exporter) == [
        "SELECT * FROM cards WHERE number = '4711-secret'",
        "SELECT * FROM cards WHERE pin = 'secret' AND n = $1",
        None,
        "UPDATE cards SET pin = 'secret'",
        None,
        "SET pin:47 secret",
        "AUTH secret",
        None,
    ]
    names = {span.name for span in exporter.get_finished_spans()}
    assert names == {"SELECT cards", "UPDATE cards", "SET", "AUTH", "GET", "postgresql", "mysql"}


def test_a_statement_as_it_was_received_has_a_bounded_length(make_feed: Callable[..., Feed]) -> None:
    exporter = InMemorySpanExporter()
    feed = make_feed(exporter, raw_statements=True)
    feed.take(query("SELECT '" + "x" * 5000 + "'"), Protocol.POSTGRES)
    feed.take(b"", Protocol.POSTGRES, event=Event.CLOSED)
    [span] = eventually(exporter.get_finished_spans, "the span is exported")
    assert text(span) == "SELECT '" + "x" * 1016


class Held(SpanExporter):
    """Exports nothing until it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.go.wait(30)
        return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        self.go.set()


def test_spans_for_which_the_queue_has_no_room_are_counted(make_feed: Callable[..., Feed]) -> None:
    held = Held()
    feed = make_feed(held, 10)
    feed.requests(25)
    eventually(lambda: feed.losses() == {"spans_queue_full": 15}, "15 spans find no room")
    held.go.set()
    eventually(lambda: feed.losses() == {"spans_queue_full": 15, "spans_export_failed": 10}, "the others fail")


def test_exchanges_for_which_there_is_no_room_are_counted(
    make_feed: Callable[..., Feed], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchanges_module, "_OPEN_MAX", 3)
    exporter = InMemorySpanExporter()
    feed = make_feed(exporter)
    for connection in range(1, 6):
        feed.take(b"GET / HTTP/1.1", connection=connection)
    eventually(lambda: feed.losses() == {"spans_without_room": 2}, "2 exchanges find no room")


def test_records_that_come_faster_than_they_are_paired_are_counted(
    make_feed: Callable[..., Feed], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline_module, "_QUEUE", 8)
    monkeypatch.setattr(pipeline_module, "_LOOK_S", 60.0)
    feed = make_feed(InMemorySpanExporter())
    feed.requests(6)
    assert feed.losses() == {"span_records_dropped": 3, "span_answers_dropped": 3}
    feed.take(b"GET / HTTP/1.1", process=Peer(1 << 30, 2, Labels("other"), 1000))
    assert feed.losses() == {"span_records_dropped": 3, "span_answers_dropped": 3}
    [trouble] = [part.trouble for part in feed.pipeline.supervised if part.trouble]
    assert trouble.startswith("6 records that waited to be paired were lost for want of room in the last minutes: ")


def test_one_users_requests_without_answers_end_nobody_elses_spans(
    make_feed: Callable[..., Feed], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchanges_module, "_OPEN_MAX", 20)
    exporter = InMemorySpanExporter()
    feed = make_feed(exporter)
    evil, honest = (Peer(1 << 30, number, Labels("shop"), number) for number in (64321, 1000))
    now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    for connection in range(1, 100):
        feed.take(b"GET /evil HTTP/1.1", connection=connection, process=evil, time_ns=now)
    for connection in range(101, 111):
        feed.take(b"GET /honest HTTP/1.1", connection=connection, process=honest, time_ns=now)
        feed.take(b"HTTP/1.1 200 OK\r\n", connection=connection, event=Event.ANSWER, process=honest, time_ns=now)
        feed.take(b"", connection=connection, event=Event.CLOSED, process=honest, time_ns=now)
    eventually(lambda: len(exporter.get_finished_spans()) == 10, "all spans of the honest are exported")
    assert {(span.attributes or {})["url.path"] for span in exporter.get_finished_spans()} == {"/honest"}
    troubles = [part.trouble for part in feed.pipeline.supervised if part.trouble]
    assert len(troubles) == 1
    assert "open exchanges were lost for want of room in the last minutes: user 64321 had 20 of 20." in troubles[0]


def test_an_answer_ends_a_span_while_others_wait(make_feed: Callable[..., Feed]) -> None:
    exporter = InMemorySpanExporter()
    feed = make_feed(exporter)
    now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    for connection in (7, 8):
        feed.take(b"GET / HTTP/1.1", connection=connection, time_ns=now)
    feed.take(b"HTTP/1.1 204 No Content\r\n", event=Event.ANSWER, time_ns=now)
    feed.take(b"", event=Event.CLOSED, time_ns=now)
    (span,) = eventually(exporter.get_finished_spans, "a span is exported")
    assert span.attributes["http.response.status_code"] == 204
    assert feed.pipeline.spans().queued == 1


def test_what_is_kept_is_exported_waits_or_is_lost(
    make_feed: Callable[..., Feed], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline_module, "_QUEUE", 60)
    monkeypatch.setattr(exchanges_module, "_OPEN_MAX", 20)
    held = Held()
    feed = make_feed(held, 5)
    feed.take(b"GET / HTTP/1.1", connection=0)  # of no connection that is followed
    for connection in range(1, 25):
        feed.take(b"GET / HTTP/1.1", connection=connection)
    feed.requests(10)
    feed.take(b"GET / HTTP/1.1", connection=99)

    def adds_up() -> bool:
        spans = feed.pipeline.spans()
        return spans.kept == 36 == spans.exported + spans.queued + sum(spans.lost.values())

    eventually(adds_up, "the numbers add up while spans wait")
    held.go.set()
    feed.pipeline.close()
    spans = feed.pipeline.spans()
    assert spans.queued == 0
    assert spans.kept == 36 == spans.exported + sum(spans.lost.values())
    assert spans.lost["spans_not_made"] == 1
    assert spans.lost["spans_without_room"] >= 1


def test_requests_wait_and_are_timed_by_the_kernels_clock(make_feed: Callable[..., Feed]) -> None:
    exporter, clock = InMemorySpanExporter(), SetClock()
    feed = make_feed(exporter, clock=clock)
    now = clock.now_ns()
    feed.take(b"GET / HTTP/1.1", time_ns=now)
    feed.take(b"HTTP/1.1 204 No Content\r\n", event=Event.ANSWER, time_ns=now + 5)
    [span] = eventually(exporter.get_finished_spans, "the answer is complete: no more of it has come")
    assert abs(span.start_time - time.time_ns()) < 60 * 10**9
    clock.set(-3600 * 10**9)
    feed.take(b"GET / HTTP/1.1", time_ns=clock.now_ns())
    feed.take(b"", event=Event.CLOSED, time_ns=clock.now_ns())
    _, after = eventually(lambda: (spans := exporter.get_finished_spans())[1:] and spans, "the next one is, too")
    assert abs(after.start_time - time.time_ns() + 3600 * 10**9) < 60 * 10**9


def written(path: Path) -> int:
    """How many spans the next agent would tell as lost."""
    return int(path.read_text().split()[1])


def test_what_a_killed_agent_held_in_any_place_is_told_by_the_next(
    make_feed: Callable[..., Feed], tmp_path: Path
) -> None:
    path = tmp_path / "spans"
    feed = make_feed(Held(), ledger=Ledger(path))  # its export hangs all the while
    feed.requests(20)
    feed.wait(3, 100)  # for their answers
    feed.pipeline.coming = lambda: 4
    eventually(lambda: written(path) == 27, "it is written down")
    killed = Ledger(path)
    assert (killed.before, killed.killed) == (27, 1)


def test_what_is_lost_at_the_end_is_told_once_by_the_next(make_feed: Callable[..., Feed], tmp_path: Path) -> None:
    path = tmp_path / "spans"
    feed = make_feed(Held(), 10, ledger=Ledger(path))
    feed.requests(12)
    eventually(lambda: feed.losses() == {"spans_queue_full": 2}, "two find no room")
    feed.pipeline.lost_coming = lambda: {"agent_slow": 1}  # told, as those two are
    feed.pipeline.ending()
    feed.pipeline.lost_coming = lambda: {"agent_slow": 5}
    feed.wait(3, 100)  # for their answers; then they find no room
    feed.pipeline.give_up(6)
    with capture_logs() as logs:
        feed.pipeline.close()
    *_, account, lost = logs
    assert (lost["event"], lost["spans"]) == ("spans were lost at the end", 10 + 4 + 3 + 6)
    assert (account["event"], account["kept"], account["exported"]) == ("the account of spans", 12 + 5 + 3 + 6, 0)
    assert sum(account["lost"].values()) == account["kept"]
    following = make_feed(InMemorySpanExporter(), ledger=Ledger(path))
    assert following.losses() == {"spans_lost_at_end": 23}
    following.requests(5)
    following.pipeline.close()
    last = Ledger(path)
    assert (last.before, last.killed) == (23, 0)


def test_a_process_of_which_no_span_can_be_made_costs_nobody_else_one(
    make_feed: Callable[..., Feed], monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = InMemorySpanExporter()
    feed = make_feed(exporter)
    monkeypatch.setattr(feed.pipeline._resources, "of", lambda *_: 1 / 0)
    feed.requests(2)
    eventually(lambda: feed.losses() == {"spans_not_made": 2}, "the loss is counted")
    monkeypatch.undo()
    feed.requests(3)
    eventually(lambda: len(exporter.get_finished_spans()) == 3, "others are exported")
