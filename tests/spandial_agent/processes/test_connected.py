"""Open connections, put together by whom they are with."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spandial_agent.processes import sockets as listening_module
from spandial_agent.processes.sockets import Connected, Endpoint, TcpSocket, connected

ESTABLISHED = 1

_endpoints = st.builds(Endpoint, st.sampled_from(["10.0.0.1", "::1"]), st.integers(80, 84))
_sockets = st.builds(TcpSocket, st.just(ESTABLISHED), _endpoints, _endpoints, st.integers(1, 99))


def connection(local: int, address: str, remote: int) -> TcpSocket:
    return TcpSocket(ESTABLISHED, Endpoint("10.0.0.9", local), Endpoint(address, remote), 1)


def test_clients_are_told_from_servers_by_the_ports_that_the_process_listens_on() -> None:
    sockets = [
        connection(8080, "10.0.0.1", 50001),
        connection(8080, "10.0.0.1", 50002),
        connection(8080, "10.0.0.2", 50001),
        connection(60001, "10.0.0.5", 5432),
        connection(60002, "10.0.0.5", 5432),
        connection(60003, "10.0.0.5", 5432),
        connection(60004, "::1", 8080),
    ]
    assert connected(sockets, {8080}) == [
        Connected(False, "10.0.0.5", 5432, 3),
        Connected(True, "10.0.0.1", 8080, 2),
        Connected(False, "::1", 8080, 1),
        Connected(True, "10.0.0.2", 8080, 1),
    ]
    assert connected([], {8080}) == []


def test_a_socket_that_is_shown_twice_is_one_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = [connection(8080, "10.0.0.1", 50001), connection(8080, "10.0.0.1", 50002)._replace(inode=2)]
    monkeypatch.setattr(listening_module, "_in_own_namespace", lambda pid: False)
    monkeypatch.setattr(listening_module, "_shown", lambda pid: iter([*shown, shown[0]]))
    monkeypatch.setattr(listening_module, "socket_inodes", lambda pid: {1, 2})
    assert listening_module.open_connections(1) == shown


@given(st.lists(_sockets), st.frozensets(st.integers(80, 84)))
def test_every_connection_is_in_one_group(sockets: list[TcpSocket], ports: frozenset[int]) -> None:
    groups = connected(sockets, ports)
    assert sum(group.connections for group in groups) == len(sockets)
    assert len({group[:3] for group in groups}) == len(groups)
    assert [group.connections for group in groups] == sorted((group.connections for group in groups), reverse=True)
