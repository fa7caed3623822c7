"""The gRPC and HTTP/2 servers and their loads agree on what was done."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.programs.process import Done, Load
from tests.e2e.rpc import RpcServer, grpc_echo, h2load, node_h2c

pytest_plugins = ["tests.e2e.programs.fixtures"]
pytestmark = pytest.mark.e2e

PARENT = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNARY = "/echo.Echo/Unary"


@pytest.fixture(scope="module")
def grpc_load() -> Iterator[Load]:
    with Load("grpc") as load:
        yield load


@pytest.mark.parametrize(("channels", "concurrency"), [(1, 1), (1, 64), (4, 4), (4, 64)])
def test_unary_calls(grpc_server: RpcServer, grpc_load: Load, channels: int, concurrency: int) -> None:
    arguments: dict[str, Any] = {"count": 320, "connections": channels, "concurrency": concurrency}
    done = grpc_load.run("calls", address=grpc_server.address, **arguments).done
    assert done == Done({UNARY: 320}, {})
    assert grpc_server.served() == done


@pytest.mark.parametrize("method", ["ServerStream", "ClientStream"])
def test_streams(grpc_server: RpcServer, grpc_load: Load, method: str) -> None:
    done = grpc_load.run(
        "calls", address=grpc_server.address, count=40, concurrency=4, method=method, messages=100
    ).done
    assert done == Done({f"/echo.Echo/{method}": 40}, {})
    assert grpc_server.served() == done


@pytest.mark.parametrize("method", ["Unary", "ServerStream", "ClientStream"])
@pytest.mark.parametrize(("status", "name"), [(5, "NOT_FOUND"), (13, "INTERNAL"), (16, "UNAUTHENTICATED")])
def test_calls_end_in_the_status_asked_for(
    grpc_server: RpcServer, grpc_load: Load, method: str, status: int, name: str
) -> None:
    done = grpc_load.run("calls", address=grpc_server.address, count=20, method=method, status=status).done
    assert done == Done({f"/echo.Echo/{method}": 20}, {name: 20})
    assert grpc_server.served() == done


def test_an_unknown_method_is_unimplemented(grpc_server: RpcServer, grpc_load: Load) -> None:
    done = grpc_load.run("calls", address=grpc_server.address, count=20, method="Nothing").done
    assert done == Done({"/echo.Echo/Nothing": 20}, {"UNIMPLEMENTED": 20})
    assert grpc_server.served() == done


def test_trace_contexts_are_random_and_told(grpc_server: RpcServer, grpc_load: Load) -> None:
    runs = [
        grpc_load.run("calls", address=grpc_server.address, count=320, concurrency=64, seed=seed, each=True)
        for seed in (1, 1, 2)
    ]
    first, again, other = ({operation.traceparent for operation in run.each} for run in runs)
    assert len(first) == 320
    assert first == again
    assert first.isdisjoint(other)
    assert all(re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]", traceparent) for traceparent in first)
    assert {traceparent[-2:] for traceparent in first} == {"00", "01"}
    assert grpc_server.served() == Done({UNARY: 960}, {})


def test_grpc_over_a_unix_socket(grpc_load: Load, tmp_path: Path) -> None:
    with grpc_echo(str(tmp_path / "grpc.sock")) as server:
        done = grpc_load.run("calls", address=server.address, count=100, concurrency=8).done
        assert done == Done({UNARY: 100}, {})
        assert server.served() == done


def test_h2load_calls_grpc(grpc_server: RpcServer, tmp_path: Path) -> None:
    with h2load(grpc_server, 1000, PARENT, path=UNARY, connections=4, streams=8, message_in=tmp_path) as tool:
        done = tool.run()
    assert done == Done({UNARY: 1000}, {})
    assert grpc_server.served() == done


@pytest.mark.parametrize(("connections", "streams"), [(1, 1), (1, 64), (64, 1), (8, 8)])
def test_h2load_on_node(h2c_server: RpcServer, connections: int, streams: int) -> None:
    with h2load(h2c_server, 2000, PARENT, connections=connections, streams=streams) as tool:
        done = tool.run()
    assert done == Done({"/pay": 2000}, {})
    assert h2c_server.served() == done


def test_h2load_is_refused_by_node(h2c_server: RpcServer) -> None:
    with h2load(h2c_server, 100, path="/status/503", connections=4) as tool:
        done = tool.run()
    assert done == Done({"/status/503": 100}, {"503": 100})
    assert h2c_server.served() == done


def test_node_over_a_unix_socket(tmp_path: Path) -> None:
    with node_h2c(str(tmp_path / "node.sock")) as server:
        with h2load(server, 1000, connections=4) as tool:
            done = tool.run()
        assert server.served() == done


def test_a_server_ends_with_its_test() -> None:
    with pytest.raises(ZeroDivisionError), grpc_echo() as server:
        raise ZeroDivisionError
    assert server.process.poll() is not None
