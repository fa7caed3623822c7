"""The application-facing socket under processes that are many, slow or hostile."""

from __future__ import annotations

import json
import os
import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from spandial import abi
from spandial_agent.discovery import registrar as registrar_module
from tests.agent_process import eventually
from tests.spandial_agent.running_registrar import Peer, RunningRegistrar, hello


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 8192:
        pytest.skip("this process may not open 8192 files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 8192), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def few_descriptors(left: int) -> Iterator[None]:
    """This process can open so many files and no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = [os.dup(0) for _ in range(left + 1)]
    for descriptor in lowest:
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest[-1], hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_publishing_brings_the_counts_of_a_hook_that_answers(
    running: RunningRegistrar, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registrar_module, "_PUBLISH_WAIT_S", 60.0)
    peer.register(hello())
    page = peer.map_page()

    def answer_three_requests() -> None:
        for _ in range(3):
            number = json.loads(peer.socket.recv(1 << 16))["publish"]
            page[abi.PAGE_COUNTS] = number * 100
            page[abi.PAGE_PUBLISHED] = number

    hook = threading.Thread(target=answer_three_requests)
    hook.start()
    for number in (1, 2, 3):
        running.publish()
        assert running.pages()[0].read()[0] == number * 100
    hook.join()


def test_publishing_without_hooks_asks_nobody(running: RunningRegistrar, peer: Peer) -> None:
    running.publish()
    assert "row" in peer.register(hello())


def test_only_the_hooks_of_the_targets_that_are_meant_are_asked(running: RunningRegistrar, peer: Peer) -> None:
    peer.register(hello())
    peer.socket.settimeout(0.2)
    running.publish([])
    with pytest.raises(TimeoutError):
        peer.socket.recv(1 << 16)
    running.publish(running.call(lambda: list(running.targets)))
    assert json.loads(peer.socket.recv(1 << 16)) == {"publish": 2}


def test_publishing_does_not_wait_for_a_hook_that_never_answers(running: RunningRegistrar, peer: Peer) -> None:
    peer.register(hello())
    for _ in range(3):
        running.publish()
    assert running.pages()[0].published == 0


def test_a_hook_that_reads_nothing_cannot_fill_the_agent(
    running: RunningRegistrar, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registrar_module, "_PUBLISH_WAIT_S", 0.0)
    peer.register(hello())
    for _ in range(2000):
        running.publish()
    again = running.peer()
    assert "row" in again.register(hello())
    again.close()


def test_a_hook_that_ends_while_its_counts_are_awaited_is_not_waited_for(
    running: RunningRegistrar, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registrar_module, "_PUBLISH_WAIT_S", 60.0)
    peer.register(hello())
    threading.Timer(0.05, peer.close).start()
    running.publish()
    assert running.pages() == []


def test_a_process_that_ends_while_its_counts_are_awaited_is_not_waited_for(
    running: RunningRegistrar, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registrar_module, "_PUBLISH_WAIT_S", 60.0)
    peer.register(hello())
    running.loop.call_soon_threadsafe(running.loop.call_later, 0.05, running.targets.remove, os.getpid())
    running.publish()


def test_connections_that_never_register_do_not_keep_others_out(
    running: RunningRegistrar, many_descriptors: None
) -> None:
    idle = [running.peer() for _ in range(3000)]
    peer = running.peer()
    assert "row" in peer.register(hello())
    assert idle[0].is_closed_by_the_agent()
    held = running.call(lambda: len(running.registrar._connections))
    assert held <= registrar_module._WAITING_MAX + 1
    late = idle[-1]
    assert "row" in late.register(hello())
    for each in [*idle, peer]:
        each.close()


def test_a_registered_process_is_not_dropped_for_those_who_wait(
    running: RunningRegistrar, peer: Peer, many_descriptors: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registrar_module, "_WAITING_MAX", 10)
    peer.register(hello())
    idle = [running.peer() for _ in range(100)]
    assert idle[0].is_closed_by_the_agent()
    assert len(running.pages()) == 1
    for each in idle:
        each.close()


def test_registering_and_leaving_leaks_no_descriptor(running: RunningRegistrar) -> None:
    def cycle(message: bytes) -> None:
        peer = running.peer()
        peer.register(message)
        peer.close()

    cycle(hello())
    eventually(lambda: not running.pages(), "the hook is gone")
    before = open_descriptors()
    for number in range(300):
        cycle(hello() if number % 3 else b"{")
    eventually(lambda: not running.pages(), "the hooks are gone")
    eventually(lambda: open_descriptors() <= before, "all descriptors are closed")


def test_without_descriptors_the_agent_neither_spins_nor_forgets_who_waits(
    running: RunningRegistrar, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = 0
    accept = socket.socket.accept

    def counted(listener: socket.socket) -> tuple[socket.socket, object]:
        nonlocal attempts
        attempts += 1
        return accept(listener)

    monkeypatch.setattr(socket.socket, "accept", counted)
    peer = Peer()
    with few_descriptors(0):
        peer.connect(running.path)
        time.sleep(0.3)
        tried = attempts
    assert tried <= 3
    assert "row" in peer.register(hello())
    eventually(lambda: running.call(lambda: running.registrar._retry) is None, "it listens again")
    peer.close()


@pytest.mark.parametrize("left", [0, 1])
def test_a_process_for_which_there_are_no_descriptors_is_refused_and_may_come_again(
    running: RunningRegistrar, peer: Peer, left: int
) -> None:
    eventually(lambda: running.call(lambda: running.registrar._connections), "the connection is accepted")
    before = open_descriptors()
    with few_descriptors(left):
        answer = peer.register(hello())
        assert peer.is_closed_by_the_agent()
    assert "error" in answer
    assert open_descriptors() <= before - 1
    again = running.peer()
    assert "row" in again.register(hello())
    again.close()


def test_one_registration_that_fails_is_the_only_one(
    running: RunningRegistrar, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError("the kernel's map is gone")

    with monkeypatch.context() as patched:
        patched.setattr(running.targets, "hook", broken)
        peer.socket.send(hello())
        assert peer.is_closed_by_the_agent()
    again = running.peer()
    assert "row" in again.register(hello())
    assert running.registrar.refused == 1
    again.close()


def test_all_hooks_are_sent_away_and_come_back(running: RunningRegistrar, peer: Peer) -> None:
    row = peer.register(hello())["row"]
    running.call(running.registrar.send_all_away)
    assert peer.is_closed_by_the_agent()
    again = running.peer()
    assert again.register(hello())["row"] == row
    again.close()
