"""Load on MariaDB: with PyMySQL, which sends text only, and with prepared statements. Table `numbers` holds the row 0.

Kinds, as the server names commands: "query" (COM_QUERY), "prepare", "execute", "close stmt", "ping". COM_QUIT, with
which every connection ends, is left out here and in the server's count. The operations of a report are all that PyMySQL
sent, so also a SET NAMES for each connection; `each` has those that the load asked for.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, closing
from typing import Any

import pymysql  # type: ignore[import-untyped]
from pymysql.constants import COMMAND  # type: ignore[import-untyped]

from tests.e2e.programs import prepared
from tests.e2e.programs.operations import Recorder, serve, spread

# With a number of 0: 1062 duplicate key, 1146 no such table, 1064 syntax, 1690 out of range.
_DUPLICATE, _NO_TABLE, _SYNTAX = "INSERT INTO numbers VALUES (%s)", "SELECT n FROM nowhere WHERE n = %s", "SELEC %s"
_OUT_OF_RANGE = "SELECT 9223372036854775807 + 1 + n FROM numbers WHERE n = %s"
_ERRORS = [_DUPLICATE, _NO_TABLE, _SYNTAX, _OUT_OF_RANGE]
_Address = dict[str, Any]


def _code(error: Exception) -> str | None:
    """The error number, if it is one of the server's: 2000 to 2999 and 5000 on are the client libraries'."""
    if isinstance(error, prepared.PreparedError):
        number = error.number
    elif isinstance(error, pymysql.MySQLError) and error.args:
        number = error.args[0]
    else:
        return None
    return str(number) if 1000 <= number < 2000 or 3000 <= number < 5000 else None


def _connect(log: Recorder, address: _Address) -> AbstractContextManager[Any]:
    """A connection of PyMySQL that writes down each command it sends, but for COM_QUIT."""

    class Recorded(pymysql.connections.Connection):  # type: ignore[misc]
        def _execute_command(self, command: int, sql: Any) -> None:
            log.sent.append({COMMAND.COM_QUERY: "query", COMMAND.COM_PING: "ping"}[command])
            super()._execute_command(command, sql)

    # The server has no TLS, and the context for it takes long to make. With None, there is no SET AUTOCOMMIT.
    return closing(Recorded(**address, autocommit=None, ssl_disabled=True))


def queries(log: Recorder, address: _Address, count: int, connections: int = 1) -> None:
    def work(connection: Any, share: int) -> None:
        with connection.cursor() as cursor:
            for number in range(share):
                with log.operation("query"):
                    cursor.execute("SELECT %s", (number,))
                    assert cursor.fetchone() == (number,)

    spread(count, connections, lambda: _connect(log, address), work)


def pings(log: Recorder, address: _Address, count: int, connections: int = 1) -> None:
    def work(connection: Any, share: int) -> None:
        for _ in range(share):
            with log.operation("ping"):
                connection.ping(reconnect=False)

    spread(count, connections, lambda: _connect(log, address), work)


def errors(log: Recorder, address: _Address, count: int, connections: int = 1) -> None:
    """Statements that all fail, four kinds in turn."""

    def work(connection: Any, share: int) -> None:
        with connection.cursor() as cursor:
            for number in range(share):
                with log.operation("query"):
                    cursor.execute(_ERRORS[number % len(_ERRORS)], (0,))

    spread(count, connections, lambda: _connect(log, address), work)


def executions(log: Recorder, address: _Address, count: int, connections: int = 1, failing: bool = False) -> None:
    """So many executions of one prepared statement a connection; each fails with 1062 if they are to."""
    text, rows = ("INSERT INTO numbers VALUES (?)", 0) if failing else ("SELECT ? + 1", 1)

    def work(connection: prepared.Connection, share: int) -> None:
        with log.operation("prepare"):
            statement = connection.prepare(text)
        for number in range(share):
            with log.operation("execute"):
                assert statement.execute(0 if failing else number) == rows
        with log.operation("close stmt"):
            statement.close()

    spread(count, connections, lambda: closing(prepared.Connection(**address)), work)


def refused(log: Recorder, address: _Address, count: int, connections: int = 1) -> None:
    """Statements that cannot be prepared, two kinds in turn."""

    def work(connection: prepared.Connection, share: int) -> None:
        for number in range(share):
            with log.operation("prepare"):
                connection.prepare((_NO_TABLE, _SYNTAX)[number % 2].replace("%s", "?"))

    spread(count, connections, lambda: closing(prepared.Connection(**address)), work)


if __name__ == "__main__":
    modes = {"queries": queries, "pings": pings, "errors": errors, "executions": executions, "refused": refused}
    serve(_code, modes)
