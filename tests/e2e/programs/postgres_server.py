"""PostgreSQL, which says in its log what it executed."""

from __future__ import annotations

import csv
import io
import os
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import psycopg

from tests.agent_process import eventually
from tests.certificates import self_signed
from tests.e2e.programs.database import Database
from tests.e2e.programs.process import Done, executable
from tests.e2e.services import free_port

__all__ = ["PostgreSQL"]


class PostgreSQL(Database):
    """Kinds: "query", a Query message; "execute", an Execute message; "refused", a Parse or Bind that failed, with or
    without an Execute behind it, which is skipped. Errors: by SQLSTATE.

    It counts from its log: a line for each statement before it is executed (`log_statement`), and one for each error.
    """

    def __init__(self, folder: Path, environment: dict[str, str] | None = None, tls: bool = False) -> None:
        port = free_port()
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": port,
            "unix_socket_directories": folder,
            "ssl": "off",
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
            "autovacuum": "off",
            "logging_collector": "on",
            "log_destination": "csvlog",
            "log_directory": folder / "served",
            "log_filename": "served.log",
            "log_rotation_age": 0,
            "log_rotation_size": 0,
            "log_statement": "all",
            "log_min_messages": "error",
        }
        if tls:
            made = self_signed(folder)
            # Of the user that it runs as, and nobody else's to read.
            os.chown(made.key, folder.stat().st_uid, folder.stat().st_gid)
            made.key.chmod(0o600)
            settings |= {"ssl": "on", "ssl_cert_file": made.certificate, "ssl_key_file": made.key}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        command = [executable("postgres"), "-D", str(folder / "data"), *options]
        self._done: dict[str, Counter[str]] = {"operations": Counter(), "errors": Counter()}
        self._offset, self._unread = 0, b""
        super().__init__(folder, port, folder / f".s.PGSQL.{port}", command, environment)

    def prepare(self) -> None:
        self._admin.execute("CREATE ROLE app SUPERUSER LOGIN")
        self._admin.execute("CREATE DATABASE app")
        with psycopg.connect(self.address(unix=True), user="postgres") as connection:
            connection.execute("CREATE TABLE numbers (n int PRIMARY KEY)")
            connection.execute("CREATE TABLE copied (n int)")
            connection.execute("INSERT INTO numbers VALUES (0)")

    def address(self, unix: bool = False) -> str:
        """A connection string."""
        return f"host={self.folder if unix else '127.0.0.1'} port={self.port} user=app dbname=app"

    def stop(self) -> None:
        # An immediate shutdown: a smart one would wait until the clients go.
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGQUIT)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                pass
        super().stop()

    def _admits(self) -> bool:
        try:
            address = self.address(unix=True)
            self._admin = psycopg.connect(address, user="postgres", dbname="postgres", autocommit=True)
        except psycopg.OperationalError:
            return False
        return True

    def _counted(self) -> Done:
        # All lines go through one pipe: where this one is, there are all before it.
        marker = f"served {time.monotonic_ns()}"
        self._admin.execute(f"SELECT '{marker}'")
        eventually(lambda: self._read(marker.encode()), "the log has the last statement")
        return Done(dict(self._done["operations"]), dict(self._done["errors"]))

    def _read(self, marker: bytes) -> bool:
        """Count the log's lines up to the one with the marker, if it is there."""
        with open(self.folder / "served" / "served.csv", "rb") as log:
            log.seek(self._offset)
            self._unread += log.read()
            self._offset = log.tell()
        end = self._unread.find(b"\n", max(self._unread.find(marker), 0)) + 1
        if marker not in self._unread[:end]:
            return False
        lines, self._unread = self._unread[:end].decode(), self._unread[end:]
        # PostgreSQL manual 20.8.4: the columns of the log in CSV format.
        for _, user, _, _, _, _, _, tag, _, _, _, severity, state, message, *_ in csv.reader(io.StringIO(lines)):
            if user == "app":
                self._count(tag, severity, state, message)
        return True

    def _count(self, tag: str, severity: str, state: str, message: str) -> None:
        operations = self._done["operations"]
        if severity == "LOG" and message.startswith("statement: "):
            operations["query"] += 1
        elif severity == "LOG" and message.startswith("execute "):
            operations["execute"] += 1
        elif severity == "ERROR":
            self._done["errors"][state] += 1
            if tag in ("PARSE", "BIND"):
                operations["refused"] += 1
            elif tag.startswith("idle"):
                # The text of a Query that cannot be parsed is not logged as a statement.
                operations["query"] += 1
