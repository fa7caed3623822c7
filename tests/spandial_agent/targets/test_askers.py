"""Which targets have the connections by which the agent is asked."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from spandial.labels import Labels
from spandial_agent.targets import askers as askers_module
from spandial_agent.targets.askers import Askers
from spandial_api.node import Connection

pytestmark = pytest.mark.anyio

ONE, OTHER = Connection("127.0.0.1", 4001, 5778, "127.0.0.1", 1), Connection("127.0.0.1", 4002, 5778, "127.0.0.1", 2)
NAMELESS = Connection("10.0.0.1", 4001, 5778)
GRAY = Labels("shop", env="gray")


class Node:
    """Targets, who of them has which connection, and the looks that were taken at them.

    Attributes:
        now: seconds.
        among: the processes that the last look was taken at.
    """

    def __init__(self) -> None:
        self.now = 1000.0
        self.targets: dict[int, Any] = {}
        self.holders: dict[int, int] = {}  # pid by port
        self.looks: list[int] = []
        self.among: list[int] = []
        self.go_on = threading.Event()
        self.go_on.set()
        self.askers = Askers(self, self.look, lambda: self.now)  # type: ignore[arg-type]

    def add(self, pid: int, labels: Labels, start_time: int = 1, uid: int = 1000) -> None:
        process = SimpleNamespace(start_time=start_time)
        self.targets[pid] = SimpleNamespace(pid=pid, labels=labels, process=process, uid=uid)

    def get(self, pid: int) -> Any:
        return self.targets.get(pid)

    def of_service(self, service: str, uid: int | None = None) -> list[int]:
        of_user = {pid: target for pid, target in self.targets.items() if uid in (None, target.uid)}
        return [pid for pid, target in of_user.items() if target.labels.service == service]

    def look(self, pids: list[int], _address: str, port: int, _to_port: int, _to_address: str) -> int | None:
        self.go_on.wait(30)
        self.looks.append(port)
        self.among = pids
        return pid if (pid := self.holders.get(port)) in pids else None

    async def asks(self, connection: Connection, service: str = "shop", uid: int | None = None) -> Labels | None:
        asker = await self.askers.find([service], connection, uid)
        return None if asker is None else asker.labels


@pytest.fixture
def node() -> Node:
    node = Node()
    node.add(7, GRAY)
    node.holders[4001] = 7
    return node


async def test_who_has_a_connection_is_looked_for_once(node: Node) -> None:
    for _ in range(100):
        assert await node.asks(ONE) == GRAY
        node.now += 10
    assert node.looks == [4001]


async def test_his_labels_are_those_of_now(node: Node) -> None:
    await node.asks(ONE)
    node.add(7, Labels("shop", env="stable"))
    assert await node.asks(ONE) == Labels("shop", env="stable")


async def test_another_process_of_the_same_pid_is_another(node: Node) -> None:
    await node.asks(ONE)
    node.add(7, Labels("shop", env="stable"), start_time=2)
    assert await node.asks(ONE) is None
    node.now += 1
    assert await node.asks(ONE) == Labels("shop", env="stable")


async def test_who_was_no_target_is_looked_for_again_now_and_then(node: Node) -> None:
    for _ in range(40):
        assert await node.asks(OTHER) is None
        node.now += 0.5
    assert len(node.looks) == 4
    node.add(8, Labels("shop"))
    node.holders[4002] = 8
    node.now += 5
    assert await node.asks(OTHER) == Labels("shop")


async def test_of_a_connection_without_a_number_it_is_not_remembered_for_long(node: Node) -> None:
    assert await node.asks(NAMELESS) == GRAY
    node.holders[4001] = 0
    node.now += 1
    assert await node.asks(NAMELESS) is None


async def test_who_asks_for_one_service_after_the_other_is_not_looked_for_each_time(node: Node) -> None:
    for number in range(100):
        assert await node.asks(ONE, f"s{number}") is None
    assert len(node.looks) == 1
    node.now += 1
    assert await node.asks(ONE) == GRAY


async def test_however_many_ask_only_so_many_wait_and_no_other_thread_does(node: Node) -> None:
    node.go_on.clear()
    asking = [
        asyncio.create_task(node.asks(Connection("127.0.0.1", port, 5778, "127.0.0.1", port))) for port in range(500)
    ]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert node.askers.skipped == 500 - askers_module._WAITING
    assert await asyncio.to_thread(lambda: "done") == "done"
    node.go_on.set()
    await asyncio.gather(*asking)
    assert len(node.looks) == askers_module._WAITING


async def test_one_connection_is_looked_at_once_by_all_who_ask_meanwhile(node: Node) -> None:
    node.go_on.clear()
    asking = [asyncio.create_task(node.asks(ONE)) for _ in range(20)]
    await asyncio.sleep(0)
    asking[0].cancel()  # who goes away ends nobody's look
    node.go_on.set()
    assert await asyncio.gather(*asking[1:]) == [GRAY] * 19
    assert node.looks == [4001]


async def test_only_so_many_are_remembered(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(askers_module, "_REMEMBERED", 3)
    for port in range(10):
        await node.asks(Connection("127.0.0.1", port, 5778, "127.0.0.1", port))
    assert len(node.askers._found) == 3


async def test_however_many_processes_one_user_has_those_of_others_are_looked_at(node: Node) -> None:
    for pid in range(1000, 3000):
        node.add(pid, GRAY, uid=64321)
    node.add(9, GRAY, uid=1001)
    node.holders[4002] = 9
    asker = await node.askers.find(["shop"], OTHER)
    assert asker is not None
    assert asker.uid == 1001
    assert len(node.among) == askers_module._PROCESSES


async def test_where_the_user_is_known_only_his_processes_are_looked_at(node: Node) -> None:
    node.add(8, GRAY, uid=64321)
    assert await node.asks(ONE, uid=64321) is None
    assert node.among == [8]
    node.now += 1
    assert await node.asks(ONE, uid=1000) == GRAY
    assert node.among == [7]
