"""PostgreSQL, MariaDB and Redis as processes. Each says itself what it executed: `served()`.

The fixtures `postgres_server`, `mariadb_server` and `redis_server` (`programs/fixtures.py`) are one process a session;
`postgres(template)`, `mariadb(template)` and `redis_database()` start further ones, of the same templates.

Clients come as the user `app`, to the database of that name, without a password.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TypeVar

from tests.e2e.programs.database import Database, server_folder, unprivileged
from tests.e2e.programs.mariadb_server import MariaDB
from tests.e2e.programs.postgres_server import PostgreSQL
from tests.e2e.programs.process import executable
from tests.e2e.programs.redis_server import Redis

__all__ = [
    "MariaDB",
    "PostgreSQL",
    "Redis",
    "mariadb",
    "mariadb_template",
    "postgres",
    "postgres_template",
    "redis_database",
]

_Server = TypeVar("_Server", bound=Database)


@contextmanager
def _started(start: Callable[[Path], _Server], template: Path | None = None) -> Iterator[_Server]:
    with server_folder() as folder:
        if template is not None:
            subprocess.run(["cp", "-a", "--reflink=auto", str(template), str(folder / "data")], check=True)
        server = start(folder)
        try:
            server.prepare()
            yield server
        finally:
            server.stop()


@contextmanager
def postgres(template: Path, environment: dict[str, str] | None = None, tls: bool = False) -> Iterator[PostgreSQL]:
    with _started(lambda folder: PostgreSQL(folder, environment, tls), template) as server:
        yield server


@contextmanager
def mariadb(template: Path, environment: dict[str, str] | None = None) -> Iterator[MariaDB]:
    with _started(lambda folder: MariaDB(folder, environment), template) as server:
        yield server


@contextmanager
def redis_database(environment: dict[str, str] | None = None) -> Iterator[Redis]:
    with _started(lambda folder: Redis(folder, environment)) as server:
        yield server


@contextmanager
def _template(command: list[str], option: str) -> Iterator[Path]:
    """A data folder that the command has made, where the option says."""
    with server_folder() as folder:
        command = unprivileged(folder, [*command, f"{option}={folder / 'data'}"])
        made = subprocess.run(command, capture_output=True, text=True)
        assert made.returncode == 0, made.stdout + made.stderr
        yield folder / "data"


def postgres_template() -> AbstractContextManager[Path]:
    command = [executable("initdb"), "-U", "postgres", "-A", "trust", "--no-sync", "--locale", "C", "-E", "UTF8"]
    return _template(command, "--pgdata")


def mariadb_template() -> AbstractContextManager[Path]:
    command = [executable("mariadb-install-db"), "--no-defaults", "--skip-test-db", "--skip-name-resolve"]
    command += ["--auth-root-authentication-method=normal", "--innodb-log-file-size=4M"]
    return _template(command, "--datadir")
