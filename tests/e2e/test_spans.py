"""Un-hooked services under load: every kept entry is one span at a receiver that this project did not write."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from spandial_agent.clock import KernelClock
from tests.agent_process import AgentProcess, eventually
from tests.e2e.databases import MariaDB, PostgreSQL, Redis
from tests.e2e.entry_stream import EntryStream
from tests.e2e.programs.generators import redis_benchmark
from tests.e2e.programs.process import Load
from tests.e2e.services import h2load, nginx, node
from tests.spandial_agent.spans.otlp_receiver import OtlpReceiver, ReceivedSpan

pytest_plugins = ["tests.e2e.programs.fixtures"]
pytestmark = [pytest.mark.kernel, pytest.mark.e2e]

TILL_NAME = f"till-{os.getpid()}"
TILL = {"OTEL_SERVICE_NAME": TILL_NAME, "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=gray"}
TILL_ALONE = f"exclude environ=OTEL_SERVICE_NAME=[!{TILL_NAME[0]}]*"
TRACE_ID = 0x0AF7651916CD43DD8448EB211C80319C
PARENT = f"traceparent: 00-{TRACE_ID:032x}-b7ad6b7169203331-01"


@pytest.fixture(params=["http/protobuf", "grpc"])
def agent(
    request: pytest.FixtureRequest, receiver: OtlpReceiver, make_agent: Callable[..., AgentProcess]
) -> AgentProcess:
    endpoint = receiver.endpoint("grpc" if request.param == "grpc" else "http")
    return make_agent(OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, OTEL_EXPORTER_OTLP_PROTOCOL=request.param)


def found(agent: AgentProcess, service: str) -> None:
    eventually(lambda: any(target["service"] == service for target in agent.get("/targets")), f"{service} is found")


def received(receiver: OtlpReceiver, count: int, service: str) -> list[ReceivedSpan]:
    def all_of_them() -> list[ReceivedSpan] | None:
        spans = [span for span in receiver.spans() if span.resource.get("service.name") == service]
        return spans if len(spans) >= count else None

    spans: list[ReceivedSpan] = eventually(all_of_them, f"{count} spans of {service}")
    assert len(spans) == count
    assert len({span.span_id for span in spans}) == count
    return spans


@pytest.mark.needs("h2load")
@pytest.mark.parametrize("name", ["nginx", "node"])
def test_every_kept_request_is_a_span(agent: AgentProcess, receiver: OtlpReceiver, tmp_path: Path, name: str) -> None:
    service = f"{name}-{os.getpid()}"  # nobody else's on this host
    start = nginx([agent], tmp_path, service=service) if name == "nginx" else node(tmp_path, service=service)
    clock = KernelClock()
    with start as server:
        found(agent, service)
        begin_ns = clock.now_ns()
        h2load(server, 500, PARENT)
        assert server.get("/missing").status_code in (200, 404)
        spans = received(receiver, 501, service)
    end_ns = clock.now_ns()
    traced = [span for span in spans if span.trace_id == TRACE_ID]
    assert len(traced) == 500
    assert {(span.name, span.kind, span.parent_span_id) for span in traced} == {("GET", "server", 0xB7AD6B7169203331)}
    assert {span.attributes["http.response.status_code"] for span in traced} == {200}
    assert {span.attributes["http.request.method"] for span in spans} == {"GET"}
    assert {span.resource["process.executable.name"] for span in spans} == {name}
    first, last = clock.unix_ns(begin_ns, end_ns)
    slack = 50_000_000
    assert all(first - slack <= span.start_ns <= span.end_ns <= last + slack for span in spans)
    losses = agent.get("/stats")["losses"]
    assert not any(count for reason, count in losses.items() if reason.startswith("span"))


def test_every_kept_statement_is_a_span(
    agent: AgentProcess,
    receiver: OtlpReceiver,
    postgres_server: PostgreSQL,
    mariadb_server: MariaDB,
    redis_server: Redis,
) -> None:
    loads = {name: Load(name, TILL) for name in ("postgres", "mysql", "redis")}
    try:
        eventually(lambda: sum(t["service"] == TILL_NAME for t in agent.get("/targets")) == 3, "all loads are found")
        done = Counter[str]()
        for mode, protocol in (("statements", "simple"), ("statements", "prepared"), ("errors", "simple")):
            report = loads["postgres"].run(mode, address=postgres_server.address(), count=40, protocol=protocol)
            done["postgresql"] += report.done.total
            done["postgresql errors"] += sum(report.done.errors.values())
        report = loads["mysql"].run("errors", address=mariadb_server.address(), count=40)
        done["mysql"], done["mysql errors"] = report.done.total, sum(report.done.errors.values())
        report = loads["redis"].run("errors", address=redis_server.address(), count=40)
        done["redis"], done["redis errors"] = report.done.total, sum(report.done.errors.values())
        total = sum(count for name, count in done.items() if " " not in name)
        spans = received(receiver, total, TILL_NAME)
    finally:
        for load in loads.values():
            load.stop()
    seen = Counter(str(span.attributes["db.system.name"]) for span in spans)
    failed = Counter(str(span.attributes["db.system.name"]) for span in spans if span.status == "error")
    systems = ("postgresql", "mysql", "redis")
    assert seen == {system: done[system] for system in systems}
    assert failed == {system: done[f"{system} errors"] for system in systems}
    named = {(span.attributes["db.system.name"], span.attributes.get("db.namespace")) for span in spans}
    assert named == {("postgresql", "app"), ("mysql", "app"), ("redis", None)}
    rows = Counter(span.attributes.get("db.response.returned_rows") for span in spans)
    assert rows[1] == done["postgresql"] - done["postgresql errors"]
    assert {span.kind for span in spans} == {"client"}
    assert {span.resource["deployment.environment.name"] for span in spans} == {"gray"}
    codes = {span.attributes.get("db.response.status_code") for span in spans if span.status == "error"}
    assert codes >= {"22012", "23505", "42P01", "42601", "1062", "1146", "1064", "1690", "WRONGTYPE", "ERR"}


@pytest.mark.parametrize("raw", [False, True], ids=["by default", "where asked for"])
def test_data_is_exported_only_where_somebody_asked_for_it(
    receiver: OtlpReceiver,
    make_agent: Callable[..., AgentProcess],
    postgres_server: PostgreSQL,
    mariadb_server: MariaDB,
    redis_server: Redis,
    raw: bool,
) -> None:
    settings = {"SPANDIAL_RAW_STATEMENTS": "1"} if raw else {}
    agent = make_agent(OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint("http"), **settings)
    servers = {"postgres": postgres_server, "mysql": mariadb_server, "redis": redis_server}
    loads = {name: Load(name, TILL) for name in servers}
    try:
        eventually(lambda: sum(t["service"] == TILL_NAME for t in agent.get("/targets")) == 3, "all loads are found")
        watching = EntryStream(agent, TILL_NAME)
        modes = {"postgres": "statements", "mysql": "queries", "redis": "commands"}
        total = sum(loads[n].run(modes[n], address=servers[n].address(), count=4).done.total for n in servers)
        eventually(lambda: len(watching.entries) >= total, f"{total} entries")
        shown = {entry["statement"] for entry in watching.entries}
        spans = received(receiver, total, TILL_NAME)
    finally:
        for load in loads.values():
            load.stop()
    exported = {str(span.attributes["db.query.text"]) for span in spans}
    without_data = {"SELECT ?::int", "SELECT ?", "SET ? ?", "GET ?"}
    with_data = {"SELECT 3::int", "SELECT 3", "SET text x", "GET text"}
    assert exported >= (with_data if raw else without_data)
    assert not exported & (without_data if raw else with_data)
    assert shown >= without_data  # whatever is exported
    for text in shown if raw else shown | exported:
        assert not re.search(r"\b[0-9]|\bx\b|text", text), text


def test_what_the_rate_drops_is_no_span(agent: AgentProcess, receiver: OtlpReceiver, redis_server: Redis) -> None:
    agent.set(0, service=TILL_NAME, protocol="db")
    with Load("redis", TILL) as load:
        found(agent, TILL_NAME)
        load.run("commands", address=redis_server.address(), count=100)
        agent.set(100, service=TILL_NAME, protocol="db")
        load.run("commands", address=redis_server.address(), count=50)
        received(receiver, 50, TILL_NAME)


def test_spans_without_a_collector_wait_and_are_told_by_the_next_agent(
    make_agent: Callable[..., AgentProcess], redis_server: Redis
) -> None:
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
    agent = make_agent(**endpoint, SPANDIAL_DISCOVER=TILL_ALONE)
    with Load("redis", TILL) as load:
        found(agent, TILL_NAME)
        load.run("commands", address=redis_server.address(), count=100)
        eventually(lambda: agent.get("/stats")["spans"]["queued"] >= 100, "the spans wait")
        spans = agent.get("/stats")["spans"]
        assert spans == {"kept": 100, "exported": 0, "queued": 100, "lost": dict.fromkeys(spans["lost"], 0)}
        agent.stop()
        assert "spans were lost at the end" in agent.log.read_text()
        agent.start()
        assert agent.get("/stats")["losses"]["spans_lost_at_end"] == 100
        found(agent, TILL_NAME)
        load.run("commands", address=redis_server.address(), count=50)
        held = agent.state_dir / "spans"
        eventually(lambda: int(held.read_text().split()[1]) == 50, "it is written down that 50 wait")
        agent.kill()
        agent.start()
        losses = agent.get("/stats")["losses"]
        assert (losses["spans_lost_at_end"], losses["agents_killed"]) == (150, 1)


def test_what_is_kept_just_before_an_agent_ends_is_exported_or_told(
    make_agent: Callable[..., AgentProcess], receiver: OtlpReceiver, redis_server: Redis
) -> None:
    agent = make_agent(OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint("http"), SPANDIAL_DISCOVER=TILL_ALONE)
    with Load("redis", TILL) as load:
        found(agent, TILL_NAME)
        load.run("commands", address=redis_server.address(), count=3000, connections=8)
        agent.stop()
        arrived = sum(span.resource.get("service.name") == TILL_NAME for span in receiver.spans())
        agent.start()
        losses = agent.get("/stats")["losses"]
    # A batch on its way may have arrived although the agent waited for it no longer.
    assert 3000 <= arrived + losses["spans_lost_at_end"] <= 3000 + 512
    assert losses["agents_killed"] == 0


def test_a_process_that_ends_at_once_has_all_its_spans(
    agent: AgentProcess, receiver: OtlpReceiver, redis_server: Redis
) -> None:
    with redis_benchmark(redis_server, 500, environment=TILL) as tool:
        found(agent, TILL_NAME)
        done = tool.run()
    spans = received(receiver, done.total, TILL_NAME)
    assert Counter(span.name for span in spans) == {"GET": 500, "CONFIG GET": 2}
    assert not [span for span in spans if "spandial.end" in span.attributes]
