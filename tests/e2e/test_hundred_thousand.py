"""A hundred thousand operations of each protocol, one and 64 at a time: on both capture paths the kernel counts each of
them, where they are sent and where they are received."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.agent_process import AgentProcess
from tests.e2e.counting import PARENT, counted, found, no_losses, operations
from tests.e2e.databases import PostgreSQL, mariadb, postgres, redis_database
from tests.e2e.programs.generators import mariadb_slap, pgbench, redis_benchmark
from tests.e2e.programs.process import Done, Load, Tool
from tests.e2e.rpc import grpc_echo, h2load, node_h2c
from tests.e2e.services import nginx

pytest_plugins = ["tests.e2e.programs.fixtures"]
pytestmark = [pytest.mark.kernel, pytest.mark.e2e]

# The tools of PostgreSQL and MariaDB do as many on each connection.
MANY, MANY_BY_64 = 100_000, 100_032


def at_each_concurrency(measure: Callable[[int], None]) -> None:
    """Call it with one and with 64 operations at a time. Both run at once, and what each starts stays on a core of its
    own: there a client and a server that take turns are faster than where they wake each other's core."""
    cores = sorted(os.sched_getaffinity(0))

    def on_core(core: int, concurrency: int) -> None:
        os.sched_setaffinity(0, {core})  # of this thread
        measure(concurrency)

    with ThreadPoolExecutor() as pool:
        list(pool.map(on_core, (cores[0], cores[-1]), (1, 64)))


def named(name: str, concurrency: int) -> dict[str, str]:
    return {"OTEL_SERVICE_NAME": f"{name}-{concurrency}"}


def own_folder(folder: Path, concurrency: int) -> Path:
    """One in that folder: what a tool reads must not be written anew for the other one meanwhile."""
    own = folder / str(concurrency)
    own.mkdir()
    return own


class Counts(NamedTuple):
    """What a tool says that it did, and what each agent counted of it at either end; nothing of what there was none."""

    done: Done
    sent: list[Counter[str]]
    received: list[Counter[str]]


def count(agents: list[AgentProcess], kind: str, concurrency: int, tool: Tool, servers: int = 1) -> Counts:
    """Run the tool, a sender, once the agents have found so many processes of the receiver."""
    sender, receiver = f"sender-{concurrency}", f"receiver-{concurrency}"
    for agent in agents:
        found(agent, sender)
        found(agent, receiver, servers)
    before = [counted(agent, receiver, kind) for agent in agents]
    sent: list[Counter[str]] = []
    done = tool.run(280, lambda: sent.extend(+counted(agent, sender, kind) for agent in agents))
    received = [counted(agent, receiver, kind) - earlier for agent, earlier in zip(agents, before)]
    assert all(no_losses(agent) for agent in agents)
    return Counts(done, sent, received)


def check_requests(counts: Counts) -> None:
    """All of them have the same trace context, which says that they are kept."""
    assert counts.done.total == MANY
    assert counts.sent == [dict.fromkeys(("reverse", "reverse_traced"), MANY)] * 2
    assert counts.received == [dict.fromkeys(("seen", "kept", "seen_traced", "kept_traced"), MANY)] * 2


@pytest.mark.needs("nginx", "h2load")
def test_http(both_agents: list[AgentProcess], tmp_path: Path) -> None:
    def measure(concurrency: int) -> None:
        sends = named("sender", concurrency)
        with (
            nginx(both_agents, own_folder(tmp_path, concurrency), service=f"receiver-{concurrency}") as server,
            h2load(server, MANY, PARENT, connections=concurrency, http1=True, environment=sends) as tool,
        ):
            check_requests(count(both_agents, "http", concurrency, tool, servers=2))  # nginx has a worker

    at_each_concurrency(measure)


@pytest.mark.needs("node", "h2load")
def test_http2(both_agents: list[AgentProcess]) -> None:
    def measure(concurrency: int) -> None:
        streams, sends = min(concurrency, 16), named("sender", concurrency)
        connections = concurrency // streams
        with (
            node_h2c(environment=named("receiver", concurrency)) as server,
            h2load(server, MANY, PARENT, connections=connections, streams=streams, environment=sends) as tool,
        ):
            counts = count(both_agents, "http", concurrency, tool)
            assert server.served() == counts.done
            check_requests(counts)

    at_each_concurrency(measure)


@pytest.mark.needs("h2load")
def test_grpc(both_agents: list[AgentProcess], tmp_path: Path) -> None:
    def measure(concurrency: int) -> None:
        streams = min(concurrency, 8)
        with (
            grpc_echo(environment=named("receiver", concurrency), threads=1) as server,
            h2load(
                server,
                MANY,
                PARENT,
                path="/echo.Echo/Unary",
                connections=concurrency // streams,
                streams=streams,
                message_in=own_folder(tmp_path, concurrency),
                environment=named("sender", concurrency),
            ) as tool,
        ):
            counts = count(both_agents, "grpc", concurrency, tool)
            assert server.served() == counts.done
            assert not any(counted(agent, f"receiver-{concurrency}", "http") for agent in both_agents)
            check_requests(counts)

    at_each_concurrency(measure)


def test_postgres(both_agents: list[AgentProcess], postgres_template: Path, tmp_path: Path) -> None:
    def measure(concurrency: int) -> None:
        mode = {1: "simple", 64: "prepared"}[concurrency]
        each, sends, folder = -(-MANY // concurrency), named("sender", concurrency), own_folder(tmp_path, concurrency)
        with (
            postgres(postgres_template, named("receiver", concurrency)) as server,
            pgbench(server, folder, each, mode=mode, clients=concurrency, environment=sends) as tool,
        ):
            # Its processes, one a connection, end with what was counted of them.
            done, sent, _ = count(both_agents, "db", concurrency, tool)
            assert server.served() == done
        assert [side["seen"] for side in sent] == [done.total] * 2
        assert done.total == {1: MANY, 64: MANY_BY_64}[concurrency]

    at_each_concurrency(measure)


def test_mariadb(both_agents: list[AgentProcess], mariadb_template: Path) -> None:
    def measure(concurrency: int) -> None:
        many = {1: MANY, 64: MANY_BY_64}[concurrency]
        with (
            mariadb(mariadb_template, named("receiver", concurrency)) as server,
            mariadb_slap(server, many, clients=concurrency, environment=named("sender", concurrency)) as tool,
        ):
            done, sent, received = count(both_agents, "db", concurrency, tool)
            assert server.served() == done
        assert [side["seen"] for side in sent] == [side["reverse"] for side in received] == [many] * 2
        assert operations(done) == many

    at_each_concurrency(measure)


@pytest.mark.parametrize("pipeline", [1, 16])
def test_redis(both_agents: list[AgentProcess], pipeline: int) -> None:
    def measure(concurrency: int) -> None:
        sends = named("sender", concurrency)
        with (
            redis_database(named("receiver", concurrency)) as server,
            redis_benchmark(server, MANY, clients=concurrency, pipeline=pipeline, environment=sends) as tool,
        ):
            done, sent, received = count(both_agents, "db", concurrency, tool)
            assert server.served() == done
        assert [side["seen"] for side in sent] == [side["reverse"] for side in received] == [done.total] * 2
        assert done.operations["get"] == MANY

    at_each_concurrency(measure)


def test_pipelines_and_copies_of_postgres(both_agents: list[AgentProcess], postgres_server: PostgreSQL) -> None:
    with Load("postgres", named("sender", 4)) as load:
        for agent in both_agents:
            found(agent, "sender-4")
        address = postgres_server.address(unix=True)
        done = load.run("pipeline", address=address, count=MANY, connections=4, seconds=120).done
        assert [counted(agent, "sender-4", "db")["seen"] for agent in both_agents] == [operations(done)] * 2
        for out in (False, True):
            load.run("copy", address=address, count=50, rows=5000, out=out)
        assert [counted(agent, "sender-4", "db")["seen"] for agent in both_agents] == [MANY + 100] * 2
    assert all(no_losses(agent) for agent in both_agents)
