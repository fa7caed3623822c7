"""Client libraries of databases and gRPC: the kernel's count is what client and server say themselves, exactly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from spandial.abi import Mode, Parent, encode_word
from spandial.decision import decide
from tests.agent_process import AgentProcess, eventually
from tests.e2e.counting import counted, found, no_losses, operations
from tests.e2e.databases import MariaDB, PostgreSQL, Redis
from tests.e2e.entry_stream import EntryStream
from tests.e2e.programs.process import Load
from tests.e2e.rpc import grpc_echo

pytest_plugins = ["tests.e2e.programs.fixtures"]
pytestmark = [pytest.mark.kernel, pytest.mark.e2e]

CLIENT, SERVER = {"OTEL_SERVICE_NAME": "till"}, {"OTEL_SERVICE_NAME": "store"}
wide = pytest.mark.parametrize("connections", [1, 64])


@pytest.fixture
def agent(share_agent: Callable[..., AgentProcess]) -> AgentProcess:
    return share_agent()


@wide
@pytest.mark.parametrize("pipelined", [False, True])
def test_redis_py_sends(agent: AgentProcess, redis_server: Redis, connections: int, pipelined: bool) -> None:
    with Load("redis", CLIENT) as load:
        found(agent, "till")
        given: dict[str, Any] = {"address": redis_server.address(), "connections": connections}
        if pipelined:
            done = load.run("pipelines", count=100_000, batch=100, transaction=False, **given).done
        else:
            done = load.run("commands", count=1920, **given).done
        assert counted(agent, "till", "db")["seen"] == done.total >= 1920
    assert redis_server.served() == done
    assert no_losses(agent)


@wide
@pytest.mark.parametrize("protocol", ["simple", "extended", "prepared"])
def test_psycopg_sends(agent: AgentProcess, postgres_server: PostgreSQL, connections: int, protocol: str) -> None:
    with Load("postgres", CLIENT) as load:
        found(agent, "till")
        address = postgres_server.address()
        done = load.run("statements", address=address, count=1920, connections=connections, protocol=protocol).done
        assert counted(agent, "till", "db")["seen"] == operations(done) == 1920
    assert postgres_server.served() == done
    assert no_losses(agent)


@wide
def test_pymysql_and_prepared_statements_are_sent(
    agent: AgentProcess, mariadb_server: MariaDB, connections: int
) -> None:
    with Load("mysql", CLIENT) as load:
        found(agent, "till")
        given: dict[str, Any] = {"address": mariadb_server.address(), "count": 6400, "connections": connections}
        done = [load.run(mode, **given).done for mode in ("queries", "executions", "pings")]
        assert counted(agent, "till", "db")["seen"] == sum(map(operations, done)) >= 3840
    assert no_losses(agent)


@pytest.mark.parametrize("rate", [30])
def test_kept_counts_follow_the_rate(agent: AgentProcess, redis_server: Redis, rate: int) -> None:
    agent.set(rate, service="till", protocol="db")
    with Load("redis", CLIENT) as load:
        found(agent, "till")
        load.run("pipelines", address=redis_server.address(), count=50_000, batch=100, transaction=False)
        counts = counted(agent, "till", "db")
    expected = counts["seen"] * rate / 100
    assert abs(counts["kept"] - expected) <= 6 * expected**0.5


def test_entries_show_statements_without_their_literals(
    make_agent: Callable[..., AgentProcess],
    postgres_server: PostgreSQL,
    mariadb_server: MariaDB,
    redis_server: Redis,
) -> None:
    agent = make_agent()
    loads = [Load(name, CLIENT) for name in ("postgres", "mysql", "redis")]
    try:
        found(agent, "till")
        stream = EntryStream(agent, "till")
        loads[0].run("statements", address=postgres_server.address(), count=20, protocol="prepared")
        loads[1].run("executions", address=mariadb_server.address(), count=20)
        loads[2].run("commands", address=redis_server.address(), count=20)
        entries = eventually(lambda: stream.entries if len(stream.entries) >= 60 else None, "all entries")
    finally:
        for load in loads:
            load.stop()
    by_protocol = Counter((entry["protocol"], entry["operation"]) for entry in entries)
    assert by_protocol["postgresql", "SELECT"] == 20
    assert sum(count for (protocol, _), count in by_protocol.items() if protocol == "mysql") >= 20
    assert by_protocol["redis", "SET"] == by_protocol["redis", "GET"] == 10
    assert all(entry["statement"] and entry["kind"] == "db" for entry in entries)


@pytest.mark.parametrize(("channels", "concurrency"), [(1, 1), (8, 64)])
def test_grpc_calls_on_both_sides(agent: AgentProcess, channels: int, concurrency: int) -> None:
    with grpc_echo(environment=SERVER) as server, Load("grpc", CLIENT) as load:
        found(agent, "store")
        found(agent, "till")
        given: dict[str, Any] = {"address": server.address, "connections": channels, "concurrency": concurrency}
        done = load.run("calls", count=3200, **given).done
        streams = [
            load.run("calls", count=64, method=method, **given).done for method in ("ServerStream", "ClientStream")
        ]
        total = done.total + sum(stream.total for stream in streams)
        eventually(lambda: counted(agent, "store", "grpc")["seen"] >= total, "all calls are seen")
        assert counted(agent, "store", "grpc")["seen"] == total == 3328
        assert counted(agent, "till", "grpc")["reverse"] == total
        assert not counted(agent, "store", "http")
    assert no_losses(agent)


@pytest.mark.parametrize("mode", Mode)
def test_grpc_calls_are_decided_by_their_trace_context(make_agent: Callable[..., AgentProcess], mode: Mode) -> None:
    agent = make_agent()
    agent.set(30, service="store", mode=mode.name.lower())
    word = encode_word(30, mode)
    with grpc_echo(environment=SERVER) as server, Load("grpc", CLIENT) as load:
        found(agent, "store")
        stream = EntryStream(agent, "store")
        report = load.run("calls", address=server.address, count=2000, concurrency=16, seed=5, each=True)
        expected = {
            operation.traceparent[3:35]
            for operation in report.each
            if decide(
                word,
                int(operation.traceparent[21:35], 16),
                Parent.REMOTE_KEPT if operation.traceparent.endswith("1") else Parent.REMOTE_DROPPED,
            )
        }
        entries = eventually(lambda: stream.entries if len(stream.entries) >= len(expected) else None, "all entries")
        counts = counted(agent, "store", "grpc")
    assert {entry["trace_id"] for entry in entries} == expected
    assert {(entry["method"], entry["path"]) for entry in entries} == {("POST", "/echo.Echo/Unary")}
    assert (counts["seen_traced"], counts["kept_traced"]) == (2000, len(expected))
