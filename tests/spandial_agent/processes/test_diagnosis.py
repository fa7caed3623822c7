"""Whose the other end of a TCP connection is."""

from __future__ import annotations

import os
import socket

import pytest

from spandial_agent.processes.diagnosis import Diagnosis, Owner
from spandial_agent.processes.sockets import Endpoint


@pytest.fixture
def diagnosis() -> Diagnosis:
    return Diagnosis()


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_it_is_the_user_and_the_inode_of_the_other_end(diagnosis: Diagnosis, address: str) -> None:
    with socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET) as server:
        there = Endpoint(*server.getsockname()[:2])
        with socket.create_connection(there) as client:
            here = Endpoint(*client.getsockname()[:2])
            owner = Owner(os.geteuid(), os.fstat(client.fileno()).st_ino)
            assert [diagnosis.owner(here, there) for _ in range(3)] == [owner] * 3
            assert diagnosis.owner(Endpoint(address, 1), there) is None
            assert diagnosis.owner(here, Endpoint(there.address, there.port ^ 1)) is None
        assert diagnosis.owner(there, there) is None, "who listens is not connected"


def test_of_a_listener_for_both_families_it_is_the_clients_family(diagnosis: Diagnosis) -> None:
    with (
        socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server,
        socket.create_connection(("127.0.0.1", server.getsockname()[1])) as client,
    ):
        accepted, (address, port, *_) = server.accept()
        with accepted:
            owner = diagnosis.owner(Endpoint(address, port), Endpoint(*accepted.getsockname()[:2]))
            assert owner == Owner(os.geteuid(), os.fstat(client.fileno()).st_ino)


def test_what_is_no_address_is_nobodys(diagnosis: Diagnosis) -> None:
    assert diagnosis.owner(Endpoint("testclient", 1), Endpoint("127.0.0.1", 2)) is None
    assert diagnosis.owner(Endpoint("127.0.0.1", 1), Endpoint("::1", 2)) is None
    assert diagnosis.owner(Endpoint("127.0.0.1", 70_000), Endpoint("127.0.0.1", 2)) is None
