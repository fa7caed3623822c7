"""MariaDB, which says in its status counters what it executed."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pymysql  # type: ignore[import-untyped]

from tests.agent_process import eventually
from tests.e2e.programs.database import Database
from tests.e2e.programs.process import Done, executable
from tests.e2e.services import free_port

__all__ = ["MariaDB"]

# All sessions' counters less those of the tests' own, in one statement, which then is in both. Questions are COM_QUERY,
# COM_STMT_EXECUTE and COM_QUIT, but neither COM_PING nor the other COM_STMT_*. A session that ends without COM_QUIT is
# an aborted client; `lost_connections` leaves it out.
_COUNTERS = """
    SELECT variable_name, everyone.variable_value - own.variable_value
    FROM information_schema.global_status AS everyone JOIN information_schema.session_status AS own
    USING (variable_name)
    WHERE variable_name IN
        ('Questions', 'Com_stmt_prepare', 'Com_stmt_execute', 'Com_stmt_close', 'Com_admin_commands')
    UNION ALL
    SELECT 'sessions', SUM(total_connections) FROM information_schema.user_statistics WHERE user = 'app'
    UNION ALL
    SELECT variable_name, variable_value FROM information_schema.global_status WHERE variable_name = 'Aborted_clients'
"""


class MariaDB(Database):
    """Kinds: "query" (COM_QUERY), "prepare", "execute" and "close stmt" (COM_STMT_*), "ping" (COM_PING, and the rarer
    administrative commands). Errors: by number. COM_QUIT is in no count.

    It counts commands in its status counters, sessions in its user statistics, and errors in the log of its plugin
    sql_errlog. The performance schema would tell more, but its sums lose events when many sessions end at once.
    """

    def __init__(self, folder: Path, environment: dict[str, str] | None = None) -> None:
        port = free_port()
        self._errors = folder / "errors.log"
        options = {
            "datadir": folder / "data",
            "socket": folder / "mariadb.sock",
            "pid-file": folder / "mariadb.pid",
            "bind-address": "127.0.0.1",
            "port": port,
            "ssl": "OFF",
            "skip-name-resolve": "ON",
            "innodb-flush-log-at-trx-commit": 0,
            "innodb-flush-method": "nosync",
            "innodb-buffer-pool-size": "16M",
            "innodb-log-file-size": "4M",
            "userstat": "ON",
            "plugin-load-add": "sql_errlog",
            "sql-error-log-filename": self._errors,
            "sql-error-log-size-limit": 1 << 30,
        }
        command = [executable("mariadbd"), "--no-defaults", *(f"--{name}={value}" for name, value in options.items())]
        super().__init__(folder, port, folder / "mariadb.sock", command, environment)

    def prepare(self) -> None:
        self._ask("CREATE USER app@'127.0.0.1', app@localhost")
        self._ask("GRANT ALL ON *.* TO app@'127.0.0.1', app@localhost")
        self._ask("CREATE DATABASE app")
        self._ask("CREATE TABLE app.numbers (n bigint PRIMARY KEY) SELECT 0 AS n")

    def address(self, unix: bool = False) -> dict[str, Any]:
        """Arguments of `pymysql.connect`."""
        where = {"unix_socket": self.socket_path} if unix else {}
        return {"host": "127.0.0.1", "port": self.port, "user": "app", "database": "app", **where}

    def _admits(self) -> bool:
        try:
            self._admin = pymysql.connect(unix_socket=self.socket_path, user="root", autocommit=True, ssl_disabled=True)
        except pymysql.OperationalError:
            return False
        return True

    def _ask(self, query: str) -> tuple[tuple[Any, ...], ...]:
        with self._admin.cursor() as cursor:
            cursor.execute(query)
            return tuple(cursor.fetchall())

    def _counted(self) -> Done:
        # COM_STMT_CLOSE has no answer: only the end of its session says that the server has come to it.
        sessions = "SELECT id FROM information_schema.processlist WHERE user = 'app'"
        eventually(lambda: not self._ask(sessions), "the clients' sessions have ended: served() wants none open")
        counters = {name.lower(): int(value or 0) for name, value in self._ask(_COUNTERS)}
        quits = counters["sessions"] - counters["aborted_clients"]
        operations = {
            "query": counters["questions"] - counters["com_stmt_execute"] - quits,
            "execute": counters["com_stmt_execute"],
            "prepare": counters["com_stmt_prepare"],
            "close stmt": counters["com_stmt_close"],
            "ping": counters["com_admin_commands"],
        }
        errors = re.findall(r"^\d[-\d]+ +[\d:]+ app\[app\] .*? ERROR (\d+): ", self._errors.read_text(), re.MULTILINE)
        # 1158 to 1161 tell of a connection that broke, and are no answer to anything.
        return Done(operations, dict(Counter(number for number in errors if not 1158 <= int(number) <= 1161)))
