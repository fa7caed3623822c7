"""The database servers and their loads agree on what was done, each by its own count."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pymysql  # type: ignore[import-untyped]
import pytest

from tests.e2e.databases import MariaDB, PostgreSQL, Redis, redis_database
from tests.e2e.programs.generators import mariadb_slap, pgbench, redis_benchmark
from tests.e2e.programs.operations import boottime_ns
from tests.e2e.programs.process import Done, Load

pytest_plugins = ["tests.e2e.programs.fixtures"]
pytestmark = pytest.mark.e2e

over = pytest.mark.parametrize("unix", [False, True], ids=["TCP", "Unix socket"])
wide = pytest.mark.parametrize("connections", [1, 64])
resp = pytest.mark.parametrize("protocol", [2, 3], ids=["RESP2", "RESP3"])


@pytest.fixture(scope="module")
def psycopg_load() -> Iterator[Load]:
    with Load("postgres") as load:
        yield load


@pytest.fixture(scope="module")
def mysql_load() -> Iterator[Load]:
    with Load("mysql") as load:
        yield load


@pytest.fixture(scope="module")
def redis_load() -> Iterator[Load]:
    with Load("redis") as load:
        yield load


@over
@wide
@pytest.mark.parametrize("protocol", ["simple", "extended", "prepared"])
def test_psycopg_statements(
    postgres_server: PostgreSQL, psycopg_load: Load, unix: bool, connections: int, protocol: str
) -> None:
    address = postgres_server.address(unix)
    done = psycopg_load.run("statements", address=address, count=320, connections=connections, protocol=protocol).done
    assert done == Done({"query" if protocol == "simple" else "execute": 320}, {})
    assert postgres_server.served() == done


@pytest.mark.parametrize("protocol", ["simple", "extended", "prepared"])
def test_psycopg_errors(postgres_server: PostgreSQL, psycopg_load: Load, protocol: str) -> None:
    done = psycopg_load.run("errors", address=postgres_server.address(), count=40, protocol=protocol).done
    assert done.operations == ({"query": 40} if protocol == "simple" else {"execute": 20, "refused": 20})
    assert done.errors == {"22012": 10, "23505": 10, "42P01": 10, "42601": 10}
    assert postgres_server.served() == done


@over
def test_psycopg_pipelines(postgres_server: PostgreSQL, psycopg_load: Load, unix: bool) -> None:
    done = psycopg_load.run("pipeline", address=postgres_server.address(unix), count=205, connections=4).done
    assert done == Done({"execute": 205}, {})
    assert postgres_server.served() == done


def test_psycopg_pipelines_with_an_error(postgres_server: PostgreSQL, psycopg_load: Load) -> None:
    report = psycopg_load.run("pipeline", address=postgres_server.address(), count=100, failing=3, each=True)
    assert Counter(operation.status for operation in report.each) == {"ok": 30, "22012": 10, "skipped": 60}
    assert report.done == Done({"execute": 40}, {"22012": 10})
    assert postgres_server.served() == report.done


@over
@pytest.mark.parametrize("out", [False, True], ids=["in", "out"])
def test_psycopg_copy(postgres_server: PostgreSQL, psycopg_load: Load, unix: bool, out: bool) -> None:
    done = psycopg_load.run("copy", address=postgres_server.address(unix), count=20, rows=1000, out=out).done
    assert done == Done({"query": 20}, {})
    assert postgres_server.served() == done


@over
@pytest.mark.parametrize(
    ("mode", "batch"), [("simple", 0), ("extended", 0), ("prepared", 0), ("extended", 10), ("prepared", 10)]
)
def test_pgbench(postgres_server: PostgreSQL, tmp_path: Path, unix: bool, mode: str, batch: int) -> None:
    with pgbench(postgres_server, tmp_path, 100, mode=mode, clients=4, batch=batch, unix=unix) as tool:
        done = tool.run()
    assert done.total == 400 * (batch or 1)
    assert postgres_server.served() == done


def test_a_statement_of_many_lines_counts_once(postgres_server: PostgreSQL) -> None:
    with psycopg.connect(postgres_server.address(), autocommit=True) as connection:
        connection.execute("SELECT 1;\nSELECT 2,\n 'a \"quoted\",\ntext'")
        connection.execute("SELECT %s::int", (1,))
    assert postgres_server.served() == Done({"query": 1, "execute": 1}, {})


@over
@wide
def test_pymysql(mariadb_server: MariaDB, mysql_load: Load, unix: bool, connections: int) -> None:
    given: dict[str, Any] = {"address": mariadb_server.address(unix), "count": 320, "connections": connections}
    done = mysql_load.run("queries", **given).done
    assert done == Done({"query": 320 + connections}, {}), "one SET NAMES a connection"
    assert mariadb_server.served() == done
    done = mysql_load.run("pings", **given).done
    assert done == Done({"query": connections, "ping": 320}, {})
    assert mariadb_server.served() == done


def test_pymysql_errors(mariadb_server: MariaDB, mysql_load: Load) -> None:
    done = mysql_load.run("errors", address=mariadb_server.address(), count=40).done
    assert done == Done({"query": 41}, {"1062": 10, "1146": 10, "1064": 10, "1690": 10})
    assert mariadb_server.served() == done


def test_a_client_that_leaves_without_a_word_is_counted_right(mariadb_server: MariaDB) -> None:
    for _ in range(5):
        connection = pymysql.connect(**mariadb_server.address(), autocommit=None, ssl_disabled=True)
        connection.cursor().execute("SELECT 1")
        connection._force_close()  # the socket, without COM_QUIT
    assert mariadb_server.served() == Done({"query": 10}, {})


@over
@wide
def test_mariadb_prepared(mariadb_server: MariaDB, mysql_load: Load, unix: bool, connections: int) -> None:
    address = mariadb_server.address(unix)
    done = mysql_load.run("executions", address=address, count=320, connections=connections).done
    assert done == Done({"prepare": connections, "execute": 320, "close stmt": connections}, {})
    assert mariadb_server.served() == done


def test_mariadb_prepared_errors(mariadb_server: MariaDB, mysql_load: Load) -> None:
    done = mysql_load.run("executions", address=mariadb_server.address(), count=40, failing=True).done
    assert done == Done({"prepare": 1, "execute": 40, "close stmt": 1}, {"1062": 40})
    assert mariadb_server.served() == done
    done = mysql_load.run("refused", address=mariadb_server.address(), count=40).done
    assert done == Done({"prepare": 40}, {"1146": 20, "1064": 20})
    assert mariadb_server.served() == done


@over
@wide
def test_mariadb_slap(mariadb_server: MariaDB, unix: bool, connections: int) -> None:
    with mariadb_slap(mariadb_server, 640, clients=connections, unix=unix) as tool:
        done = tool.run()
    assert done == Done({"query": 640}, {})
    assert mariadb_server.served() == done


@over
@wide
@resp
def test_redis_py(redis_server: Redis, redis_load: Load, unix: bool, connections: int, protocol: int) -> None:
    address = redis_server.address(unix)
    done = redis_load.run("commands", address=address, count=640, connections=connections, protocol=protocol).done
    assert done.operations == {"set": 320, "get": 320, **({"hello": connections} if protocol == 3 else {})}
    assert redis_server.served() == done


@resp
def test_the_handshake_of_redis_py(redis_server: Redis, redis_load: Load, protocol: int) -> None:
    arguments: dict[str, Any] = {"count": 20, "connections": 5, "protocol": protocol, "handshake": True}
    sent = redis_load.run("commands", address=redis_server.address(), **arguments).done.operations
    assert sent["client|setinfo"] == 10
    assert sent.get("hello", 0) == sent.get("client|maint_notifications", 0) == (5 if protocol == 3 else 0)
    served = redis_server.served().operations
    # How much of CLIENT a server knows depends on its version.
    unknown = served.pop("unknown", 0)
    assert served.items() <= sent.items()
    assert sum(count for kind, count in sent.items() if kind not in served) == unknown


@resp
@pytest.mark.parametrize("transaction", [False, True])
def test_redis_py_pipelines(redis_server: Redis, redis_load: Load, protocol: int, transaction: bool) -> None:
    report = redis_load.run(
        "pipelines",
        address=redis_server.address(),
        count=205,
        connections=4,
        protocol=protocol,
        batch=10,
        transaction=transaction,
        each=True,
    )
    assert report.done.operations["incrby"] == len(report.each) == 205
    # Shares of 52, 51, 51 and 51: six pipelines each.
    assert report.done.operations.get("multi", 0) == report.done.operations.get("exec", 0) == (24 if transaction else 0)
    assert redis_server.served() == report.done


@resp
def test_redis_py_errors(redis_server: Redis, redis_load: Load, protocol: int) -> None:
    done = redis_load.run("errors", address=redis_server.address(), count=40, protocol=protocol).done
    assert done.errors == {"WRONGTYPE": 10, "ERR": 30}
    assert done.operations.items() >= {"lpush": 10, "incr": 10, "get": 10, "unknown": 10}.items()
    assert redis_server.served() == done


@resp
def test_redis_py_subscription(redis_server: Redis, redis_load: Load, protocol: int) -> None:
    done = redis_load.run("subscription", address=redis_server.address(), count=50, protocol=protocol).done
    assert done.operations.items() >= {"subscribe": 1, "publish": 50}.items()
    assert redis_server.served() == done


@resp
def test_redis_py_blocks(redis_server: Redis, redis_load: Load, protocol: int) -> None:
    report = redis_load.run("blocking", address=redis_server.address(), count=20, protocol=protocol, each=True)
    assert report.done.operations.items() >= {"blpop": 20, "rpush": 20}.items()
    assert redis_server.served() == report.done
    pops = [operation for operation in report.each if operation.kind == "blpop"]
    pushes = [operation for operation in report.each if operation.kind == "rpush"]
    assert all(pop.end_ns > push.start_ns for pop, push in zip(pops, pushes))


@over
@wide
@resp
@pytest.mark.parametrize("pipeline", [1, 16])
def test_redis_benchmark(redis_server: Redis, unix: bool, connections: int, protocol: int, pipeline: int) -> None:
    with redis_benchmark(
        redis_server, 3200, clients=connections, pipeline=pipeline, protocol=protocol, unix=unix
    ) as tool:
        done = tool.run()
    assert done.operations["get"] == 3200
    assert redis_server.served() == done


def test_each_operation_has_its_times(redis_server: Redis, redis_load: Load) -> None:
    begin = boottime_ns()
    report = redis_load.run("commands", address=redis_server.address(), count=640, connections=64, each=True)
    end = boottime_ns()
    assert len(report.each) == 640
    assert all(begin < operation.start_ns < operation.end_ns < end for operation in report.each)
    assert {operation.status for operation in report.each} == {"ok"}


def test_a_load_has_its_labels_before_it_works(redis_server: Redis) -> None:
    labels = {"OTEL_SERVICE_NAME": "till"}
    with Load("redis", labels) as load, redis_benchmark(redis_server, 10, environment=labels) as tool:
        for pid in (load.pid, tool.pid):
            assert b"OTEL_SERVICE_NAME=till\0" in Path(f"/proc/{pid}/environ").read_bytes()
        assert redis_server.served() == Done({}, {})
        load.run("commands", address=redis_server.address(), count=10)
        tool.run()
        assert load.process.poll() is None, "it lives on until the context ends"
    assert load.process.poll() == 0


def test_a_load_that_cannot_connect_says_so() -> None:
    with Load("redis") as load, pytest.raises(AssertionError, match="ConnectionError"):
        load.run("commands", address={"path": "/nonexistent"}, count=1)


def test_a_server_ends_with_its_test() -> None:
    with pytest.raises(ZeroDivisionError), redis_database() as server:
        raise ZeroDivisionError
    assert server.process.poll() is not None
    assert not server.folder.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="the tests do not run as root")
def test_no_server_runs_as_root(postgres_server: PostgreSQL, mariadb_server: MariaDB, redis_server: Redis) -> None:
    for server in (postgres_server, mariadb_server, redis_server):
        assert Path(f"/proc/{server.pid}").stat().st_uid != 0
