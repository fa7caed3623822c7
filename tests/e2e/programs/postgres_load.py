"""Load on PostgreSQL with psycopg 3. Its table `numbers` holds the row 0, its table `copied` holds what is copied in.

Kinds, as the server's log tells them apart (PostgreSQL manual 55.2): "query", a Query message; "execute", an Execute
message; "refused", a Parse or Bind that failed, so that no Execute took effect.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Any

import psycopg

from tests.e2e.programs.operations import Operation, Recorder, boottime_ns, serve, spread

# A statement, the error it ends in, and whether that is found before the statement is executed.
_ERRORS = [
    ("SELECT 1 / n FROM numbers WHERE n = %s", False),  # 22012, division by zero
    ("INSERT INTO numbers VALUES (%s)", False),  # 23505, unique violation
    ("SELECT n FROM nowhere WHERE n = %s", True),  # 42P01, undefined table
    ("SELEC %s", True),  # 42601, syntax error
]


def _code(error: Exception) -> str | None:
    return error.sqlstate if isinstance(error, psycopg.Error) else None


def _connect(address: str, protocol: str = "extended") -> Callable[[], AbstractContextManager[psycopg.Connection[Any]]]:
    cursor = psycopg.ClientCursor if protocol == "simple" else psycopg.Cursor
    # None: nothing is prepared. 0: everything is, when it first comes. Without autocommit, psycopg sends BEGIN.
    threshold = 0 if protocol == "prepared" else None
    return lambda: psycopg.connect(address, autocommit=True, cursor_factory=cursor, prepare_threshold=threshold)


def statements(log: Recorder, address: str, count: int, connections: int = 1, protocol: str = "simple") -> None:
    """SELECTs by the protocol "simple", "extended" (unnamed) or "prepared" (named, with one Parse a connection)."""

    def work(connection: psycopg.Connection[Any], share: int) -> None:
        for number in range(share):
            with log.operation("query" if protocol == "simple" else "execute"):
                assert connection.execute("SELECT %s::int", (number,)).fetchone() == (number,)

    spread(count, connections, _connect(address, protocol), work)


def errors(log: Recorder, address: str, count: int, connections: int = 1, protocol: str = "simple") -> None:
    """Statements that all fail, four kinds in turn. With "prepared", psycopg sends the Parse on its own, so that no
    Execute follows one that is refused; with "extended" the server skips the Execute that came along."""

    def work(connection: psycopg.Connection[Any], share: int) -> None:
        for number in range(share):
            statement, early = _ERRORS[number % len(_ERRORS)]
            with log.operation("query" if protocol == "simple" else "refused" if early else "execute"):
                connection.execute(statement, (0,))

    spread(count, connections, _connect(address, protocol), work)


def pipeline(
    log: Recorder, address: str, count: int, connections: int = 1, batch: int = 10, failing: int | None = None
) -> None:
    """SELECTs in pipelines of so many. With `failing`, the one at that place in each pipeline divides by zero, and the
    server skips all behind it."""

    expected = (psycopg.errors.DivisionByZero, psycopg.errors.PipelineAborted) if failing is not None else ()

    def work(connection: psycopg.Connection[Any], share: int) -> None:
        for first in range(0, share, batch):
            sent: list[tuple[int, psycopg.Cursor[Any]]] = []
            # psycopg raises an error where it reads it: while it sends the statements behind, or at the end.
            with suppress(*expected), connection.pipeline():
                for place in range(min(batch, share - first)):
                    sent.append((boottime_ns(), connection.cursor()))
                    with suppress(*expected):
                        sent[place][1].execute(_ERRORS[0][0] if place == failing else "SELECT %s::int", (0,))
            for place, (start, cursor) in enumerate(sent):
                if failing is None or place < failing:
                    assert cursor.fetchone() == (0,)
                    status = "ok"
                else:
                    status = "22012" if place == failing else "skipped"
                log.each.append(Operation("execute", start, boottime_ns(), status))

    spread(count, connections, _connect(address), work)


def copy(log: Recorder, address: str, count: int, connections: int = 1, rows: int = 100, out: bool = False) -> None:
    """COPY so many rows, `count` times, in or out."""

    def work(connection: psycopg.Connection[Any], share: int) -> None:
        for _ in range(share):
            with log.operation("query"), connection.cursor() as cursor:
                if out:
                    with cursor.copy(f"COPY (SELECT generate_series(1, {rows})) TO STDOUT") as copied:
                        assert sum(1 for _ in copied.rows()) == rows
                else:
                    with cursor.copy("COPY copied FROM STDIN") as copied:
                        for number in range(rows):
                            copied.write_row((number,))

    spread(count, connections, _connect(address), work)


if __name__ == "__main__":
    serve(_code, {"statements": statements, "errors": errors, "pipeline": pipeline, "copy": copy})
