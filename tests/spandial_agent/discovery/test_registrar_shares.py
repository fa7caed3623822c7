"""The application-facing socket under one user who wants everything."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from spandial import abi
from spandial.labels import Labels
from spandial_agent.discovery import connection_room
from spandial_agent.discovery import registrar as registrar_module
from spandial_agent.processes import shares as shares_module
from spandial_agent.processes.counter_page import CounterPage
from spandial_agent.processes.proc import Process, read_process
from spandial_agent.table.rates import RateTable
from spandial_agent.targets.targets import Targets
from tests.agent_process import eventually
from tests.spandial_agent.conftest import DEFAULT
from tests.spandial_agent.fake_capture import FakeCapture
from tests.spandial_agent.running_registrar import Peer, RunningRegistrar, hello

GREEDY, HONEST = 64321, 1000
ROWS = abi.ROWS - 2


@pytest.fixture(autouse=True)
def _as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares_module.os, "geteuid", lambda: 0)


def discover(targets: Targets, count: int, uid: int, first: int) -> list[int]:
    """The rows that a user's processes get; no real process has such pids (PID_MAX_LIMIT, 2^22)."""
    rows = []
    for pid in range(first, first + count):
        target = targets.discover(Process(pid, 1, "python", Labels(f"s{uid}"), uid=uid))
        rows.append(-1 if target is None else target.row.number)
    return rows


def test_one_users_processes_leave_rows_for_others(targets: Targets) -> None:
    rows = discover(targets, ROWS, GREEDY, 5_000_000)
    assert 0 < rows.count(abi.DEFAULT_ROW) < ROWS // 4
    assert abi.DEFAULT_ROW not in discover(targets, 100, HONEST, 6_000_000)
    assert abi.DEFAULT_ROW not in discover(targets, 100, 0, 7_000_000)
    assert targets.sharing == {GREEDY: rows.count(abi.DEFAULT_ROW)}


def test_who_had_to_share_the_default_row_gets_one_of_his_own(targets: Targets, capture: FakeCapture) -> None:
    rows = discover(targets, ROWS, GREEDY, 5_000_000)
    without = [5_000_000 + index for index, row in enumerate(rows) if row == abi.DEFAULT_ROW][:2]
    hooked = targets.hook(Process(without[0], 1, "python", Labels(), uid=GREEDY), Labels("a"), DEFAULT, CounterPage())
    housed: list[int] = []
    targets.on_housed = lambda target: housed.append(target.pid)
    targets.find_room()
    assert housed == []
    for pid in (5_000_000, 5_000_001):
        targets.remove(pid)
    targets.find_room()
    assert housed == without
    assert hooked.row.number != abi.DEFAULT_ROW
    assert capture.watched[hooked.pid] == hooked.row
    assert hooked.labels == Labels("a")
    assert targets.sharing == {GREEDY: rows.count(abi.DEFAULT_ROW) - 2}


def test_who_finds_the_last_row_taken_goes_on_sharing_the_default_row(
    targets: Targets, table: RateTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = discover(targets, ROWS, GREEDY, 5_000_000)
    sharing = dict(targets.sharing)
    default = table.backend.read(abi.DEFAULT_ROW)
    target = targets.get(5_000_000 + rows.index(abi.DEFAULT_ROW))
    assert target is not None
    monkeypatch.setattr(table, "has_row_for", lambda uid: True)  # said before its operations took the last ones
    monkeypatch.setattr(table, "allocate", lambda *_, **__: target.row)
    targets.find_room()
    assert target.row.number == abi.DEFAULT_ROW
    assert targets.sharing == sharing
    assert table.backend.read(abi.DEFAULT_ROW) == default


def test_the_processes_of_one_user_are_only_so_many(targets: Targets) -> None:
    rows = discover(targets, ROWS + 4096, GREEDY, 5_000_000)
    assert rows.count(-1) == targets.crowded > 0
    assert -1 not in discover(targets, 300, HONEST, 6_000_000)


def test_the_hook_of_who_is_housed_comes_again_and_is_told_of_its_row(
    running: RunningRegistrar, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = running.call(lambda: [running.table.allocate(1, [0] * 4, 0) for _ in range(running.table.free_rows)])
    assert peer.register(hello())["row"] == abi.DEFAULT_ROW
    running.call(lambda: running.table.free(taken[0]))
    running.call(running.targets.find_room)
    assert peer.is_closed_by_the_agent()
    again = running.peer()
    [target] = list(running.targets)
    assert again.register(hello())["row"] == target.row.number != abi.DEFAULT_ROW
    again.close()


def as_user(monkeypatch: pytest.MonkeyPatch, uid: Callable[[], int]) -> None:
    """Who connects is taken for this user."""
    own = read_process(os.getpid())
    assert own is not None

    class Connection(registrar_module.Connection):
        def __init__(self, peer: socket.socket) -> None:
            super().__init__(peer)
            self.uid = uid()

    monkeypatch.setattr(registrar_module, "Connection", Connection)
    monkeypatch.setattr(registrar_module, "read_process", lambda pid: own._replace(uid=uid()))
    monkeypatch.setattr(connection_room, "_PER_PROCESS", 1000)


def test_a_user_with_all_connections_is_refused_and_others_are_not(
    running: RunningRegistrar, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.registrar._room._capacity = 8
    running.registrar._room._shares = shares_module.Shares(4, 1)
    who = [GREEDY]
    as_user(monkeypatch, lambda: who[0])
    peers = [running.peer() for _ in range(10)]
    answers = [peer.register(hello()) for peer in peers]
    refusals = [str(answer["error"]) for answer in answers if "error" in answer]
    assert refusals
    assert f"user {GREEDY} has 4 connections of 8" in refusals[0]
    who[0] = HONEST
    peers.append(running.peer())
    assert "row" in peers[-1].register(hello())
    for peer in peers:
        peer.close()
    eventually(lambda: not running.pages(), "all are gone")
    assert running.registrar._room._shares.held(GREEDY) == 0


def test_of_those_who_wait_the_one_with_the_most_is_dropped(
    running: RunningRegistrar, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registrar_module, "_WAITING_MAX", 10)
    who = [HONEST]
    as_user(monkeypatch, lambda: who[0])
    honest = running.peer()
    eventually(lambda: running.registrar._waiting, "it is accepted")
    who[0] = GREEDY
    idle = [running.peer() for _ in range(50)]
    assert all(peer.is_closed_by_the_agent() for peer in idle[:41])
    who[0] = HONEST
    assert "row" in honest.register(hello())
    for peer in [*idle, honest]:
        peer.close()


def test_what_a_registered_process_sends_without_end_costs_nothing(running: RunningRegistrar, peer: Peer) -> None:
    peer.register(hello())
    peer.socket.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            peer.socket.send(b"x" * 10_000)
    begun = running.call(time.thread_time)
    time.sleep(0.5)
    assert running.call(time.thread_time) - begun < 0.1
    running.publish()
    peer.socket.setblocking(True)
    assert json.loads(peer.socket.recv(1 << 16)) == {"publish": 1}
    assert len(running.pages()) == 1


def test_registrations_are_taken_from_one_user_after_the_other(
    running: RunningRegistrar, monkeypatch: pytest.MonkeyPatch
) -> None:
    who = [GREEDY]
    as_user(monkeypatch, lambda: who[0])
    listened_to: list[int] = []
    listen_to = running.registrar._listen_to

    def listen(connection: registrar_module.Connection) -> None:
        listened_to.append(connection.uid)
        listen_to(connection)

    monkeypatch.setattr(running.registrar, "_listen_to", listen)
    peers = [running.peer() for _ in range(20)]
    eventually(lambda: len(running.registrar._waiting) == 20, "they are accepted")
    who[0] = HONEST
    peers.append(running.peer())
    eventually(lambda: len(running.registrar._waiting) == 21, "the last is accepted")

    def all_at_once() -> None:
        """Before the event loop has another turn."""
        for peer in peers:
            peer.socket.send(hello())
        for connection in list(running.registrar._waiting.values()):
            running.registrar._receive(connection)

    running.call(all_at_once)
    assert all(peer.socket.recv(1 << 16) for peer in peers)
    assert listened_to.index(HONEST) == 1
    for peer in peers:
        peer.close()


def test_more_who_say_something_than_can_be_listened_to_wait_and_are_answered(
    running: RunningRegistrar, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registrar_module, "_SAID_MAX", 4)
    monkeypatch.setattr(registrar_module, "_SLICE_S", 0.0)
    peers = [running.peer() for _ in range(100)]
    for peer in peers:
        peer.socket.send(b"[" * 60_000)
    assert all("error" in json.loads(peer.socket.recv(1 << 16)) for peer in peers)
    for peer in peers:
        peer.close()
