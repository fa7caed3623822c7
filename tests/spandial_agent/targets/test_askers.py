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
        look_s: the time that a look takes.
    """

    def __init__(self) -> None:
        self.now = 1000.0
        self.targets: dict[int, Any] = {}
        self.holders: dict[int, int] = {}  # pid by port
        self.looks: list[int] = []
        self.among: list[int] = []
        self.look_s = 0.0
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

    def look(
        self, pids: list[int], _address: str, port: int, _to_port: int, _to_address: str, *, here: bool
    ) -> int | None:
        self.go_on.wait(30)
        self.looks.append(port)
        self.among = pids
        self.now += self.look_s
        return pid if (pid := self.holders.get(port)) in pids else None

    async def asks(self, connection: Connection, service: str = "shop", uid: int | None = None) -> Labels | None:
        asker = await self.askers.find([service], connection, uid)
        return None if asker is None else asker.labels


def connection_of(uid: int, port: int) -> Connection:
    return Connection("127.0.0.1", port, 5778, "127.0.0.1", port, f"uid {uid}")


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
    assert node.askers.skipped == 500 - askers_module._WAITING // 2
    assert await asyncio.to_thread(lambda: "done") == "done"
    node.go_on.set()
    await asyncio.gather(*asking)
    assert len(node.looks) == askers_module._WAITING // 2


async def test_who_keeps_the_looks_busy_keeps_nobody_else_from_his_own(node: Node) -> None:
    node.go_on.clear()
    for pid in range(100, 140):
        node.add(pid, Labels("evil"), uid=64321)
    flood = [asyncio.create_task(node.asks(connection_of(64321, port), "evil", 64321)) for port in range(1, 500)]
    await asyncio.sleep(0)
    asking = [asyncio.create_task(node.asks(connection_of(1000, port), "shop", 1000)) for port in range(4001, 4017)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    node.go_on.set()
    assert (await asyncio.gather(*asking))[0] == GRAY
    own = [number for number, port in enumerate(node.looks) if port > 4000]
    assert own == list(range(own[0], own[0] + 2 * len(own), 2)), "each after one look of the other user"
    assert own[0] <= 2, "the first after the one at hand, and one more"
    await asyncio.gather(*flood)
    assert len(own) == 16


async def test_a_user_whose_looks_take_long_is_skipped_until_it_is_made_good(node: Node) -> None:
    node.add(8, Labels("evil"), uid=64321)
    node.look_s = 0.5
    for port in range(1, 100):
        await node.asks(connection_of(64321, port), "evil", 64321)
    share = int(askers_module._AT_ONCE_S / node.look_s) + 1
    assert (len(node.looks), node.askers.skipped) == (share, 99 - share)
    assert await node.asks(connection_of(1000, 4001), "shop", 1000) == GRAY, "his own time is left to each"
    node.now += node.look_s / askers_module._PART
    await node.asks(connection_of(64321, 100), "evil", 64321)
    assert node.looks[-1] == 100


async def test_looks_that_wait_while_the_time_is_used_up_are_skipped(node: Node) -> None:
    node.look_s = 100.0
    asking = [asyncio.create_task(node.asks(connection_of(1000, port), "shop", 1000)) for port in range(4001, 4011)]
    await asyncio.gather(*asking)
    assert node.looks == [4001]
    assert node.askers.skipped == 9


async def test_a_look_that_takes_too_long_is_one_that_was_skipped(node: Node) -> None:
    def too_long(*_: object, **__: object) -> None:
        node.looks.append(0)
        node.now += 0.5
        raise TimeoutError

    assert await node.asks(connection_of(1000, 4001), "shop", 1000) == GRAY
    node.askers._look = too_long
    for port in range(1, 100):
        assert await node.asks(connection_of(1000, port), "shop", 1000) == GRAY, "as he was told before"
    assert node.askers.skipped == 99
    assert len(node.looks) < 10, "it counts in his share of the time"


async def test_who_is_skipped_is_told_what_he_was_told_before(node: Node) -> None:
    assert await node.asks(connection_of(1000, 4001), "shop", 1000) == GRAY
    node.look_s = 100.0
    await node.asks(connection_of(1000, 1), "bank", 1000)
    assert await node.asks(connection_of(1000, 4002), "shop", 1000) == GRAY, "by another connection"
    assert await node.asks(connection_of(1001, 4002), "shop", 1001) is None, "another user"
    node.now += 2
    asker = await node.askers.find(["bank", "shop"], connection_of(1000, 4001), 1000)
    assert asker is not None
    assert asker.labels == GRAY, "by the same connection, for other services"
    del node.targets[7]
    assert await node.asks(connection_of(1000, 4002), "shop", 1000) is None, "the process has ended"
    assert node.askers.skipped == 3


async def test_of_processes_that_differ_none_is_told_what_the_other_was(node: Node) -> None:
    node.add(8, Labels("shop", env="stable"))
    node.holders[4002] = 8
    for port in (4001, 4002, 4001):
        node.now += 2
        await node.asks(connection_of(1000, port)._replace(serial=0), "shop", 1000)
    node.look_s = 100.0
    await node.asks(connection_of(1000, 1), "shop", 1000)
    assert await node.asks(connection_of(1000, 4003), "shop", 1000) is None
    assert node.askers.skipped == 1


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
