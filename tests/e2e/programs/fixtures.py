"""The servers as pytest fixtures: one process a session, whose count begins anew with each test.

A test module asks for them with `pytest_plugins = ["tests.e2e.programs.fixtures"]`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import databases, rpc

__all__: list[str] = []


@pytest.fixture(scope="session")
def postgres_template() -> Iterator[Path]:
    with databases.postgres_template() as template:
        yield template


@pytest.fixture(scope="session")
def mariadb_template() -> Iterator[Path]:
    with databases.mariadb_template() as template:
        yield template


@pytest.fixture(scope="session")
def running_postgres(postgres_template: Path) -> Iterator[databases.PostgreSQL]:
    with databases.postgres(postgres_template) as server:
        yield server


@pytest.fixture(scope="session")
def running_mariadb(mariadb_template: Path) -> Iterator[databases.MariaDB]:
    with databases.mariadb(mariadb_template) as server:
        yield server


@pytest.fixture(scope="session")
def running_redis() -> Iterator[databases.Redis]:
    with databases.redis_database() as server:
        yield server


@pytest.fixture(scope="session")
def running_grpc() -> Iterator[rpc.RpcServer]:
    with rpc.grpc_echo() as server:
        yield server


@pytest.fixture(scope="session")
def running_h2c() -> Iterator[rpc.RpcServer]:
    with rpc.node_h2c() as server:
        yield server


@pytest.fixture
def postgres_server(running_postgres: databases.PostgreSQL) -> databases.PostgreSQL:
    running_postgres.served()
    return running_postgres


@pytest.fixture
def mariadb_server(running_mariadb: databases.MariaDB) -> databases.MariaDB:
    running_mariadb.served()
    return running_mariadb


@pytest.fixture
def redis_server(running_redis: databases.Redis) -> databases.Redis:
    running_redis.served()
    return running_redis


@pytest.fixture
def grpc_server(running_grpc: rpc.RpcServer) -> rpc.RpcServer:
    running_grpc.served()
    return running_grpc


@pytest.fixture
def h2c_server(running_h2c: rpc.RpcServer) -> rpc.RpcServer:
    running_h2c.served()
    return running_h2c
