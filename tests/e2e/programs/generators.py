"""The load generators that come with the databases, each told to send an exactly known number of operations."""

from __future__ import annotations

import re
from pathlib import Path

from tests.e2e.programs.mariadb_server import MariaDB
from tests.e2e.programs.postgres_server import PostgreSQL
from tests.e2e.programs.process import Done, Tool, executable
from tests.e2e.programs.redis_server import Redis

__all__ = ["mariadb_slap", "pgbench", "redis_benchmark"]


def pgbench(
    server: PostgreSQL,
    folder: Path,
    transactions: int,
    *,
    mode: str = "simple",
    clients: int = 1,
    batch: int = 0,
    unix: bool = False,
    environment: dict[str, str] | None = None,
) -> Tool:
    """`SELECT 1`, so many times by each client.

    With a script of its own pgbench sends nothing but the script; its built-in ones first look for their tables.

    Args:
        folder: for the script.
        mode: "simple", "extended" or "prepared".
        batch: each transaction is a pipeline of so many, by a mode other than "simple".
    """
    script = folder / "script.sql"
    lines = ["\\startpipeline", *["SELECT 1;"] * batch, "\\endpipeline"] if batch else ["SELECT 1;"]
    script.write_text("\n".join(lines) + "\n")
    host = str(server.folder) if unix else "127.0.0.1"
    command = [executable("pgbench"), "-n", "-h", host, "-p", str(server.port), "-U", "app", "-M", mode]
    command += ["-c", str(clients), "-t", str(transactions), "-f", str(script), "app"]
    kind = "query" if mode == "simple" else "execute"
    total = clients * transactions

    def check(output: str) -> None:
        assert f"actually processed: {total}/{total}\n" in output, output
        assert "number of failed transactions: 0 " in output, output

    return Tool(command, check, Done({kind: total * (batch or 1)}, {}), environment)


def mariadb_slap(
    server: MariaDB, queries: int, *, clients: int = 1, unix: bool = False, environment: dict[str, str] | None = None
) -> Tool:
    """`SELECT 1`, so many times, which the number of clients must divide.

    The schema is named and kept (`--no-drop`): otherwise there are a CREATE, a DROP and more to count.
    """
    assert queries % clients == 0
    where = ["--socket", server.socket_path] if unix else ["--host", "127.0.0.1", "--port", str(server.port)]
    command = [executable("mariadb-slap"), "--no-defaults", *where, "--user", "app", "--create-schema", "app"]
    command += ["--no-drop", "--query", "SELECT 1", "--concurrency", str(clients), "--number-of-queries", str(queries)]

    def check(output: str) -> None:
        assert f"Average number of queries per client: {queries // clients}\n" in output, output

    return Tool(command, check, Done({"query": queries}, {}), environment)


def redis_benchmark(
    server: Redis,
    commands: int,
    *,
    clients: int = 1,
    pipeline: int = 1,
    protocol: int = 2,
    unix: bool = False,
    environment: dict[str, str] | None = None,
) -> Tool:
    """`GET text`, so many times, which the length of a pipeline must divide: it sends whole pipelines.

    Before, it sends CONFIG GET twice on a connection of its own; with RESP3, HELLO on each other connection.
    """
    assert commands % pipeline == 0
    where = ["-s", server.socket_path] if unix else ["-h", "127.0.0.1", "-p", str(server.port)]
    command = [executable("redis-benchmark"), *where, "-n", str(commands), "-c", str(clients), "-P", str(pipeline)]
    command += [*(["-3"] if protocol == 3 else []), "GET", "text"]
    hello = {"hello": clients} if protocol == 3 else {}

    def check(output: str) -> None:
        completed = re.search(r"^ +(\d+) requests completed", output, re.MULTILINE)
        assert completed is not None, output
        assert int(completed[1]) == commands, output

    return Tool(command, check, Done({"get": commands, "config|get": 2, **hello}, {}), environment)
