"""One answer for all who ask at about the same time."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from spandial.labels import Labels
from spandial_api.node_states import NodeStats
from spandial_api.shared_answer import SharedAnswer
from tests.spandial_api.fake_node import FakeNode

pytestmark = pytest.mark.anyio


class Counted:
    """Makes answers, each the number of those before."""

    def __init__(self, takes_s: float = 0.01) -> None:
        self._takes_s = takes_s
        self.made = 0
        self.at_once = 0

    async def __call__(self) -> int:
        self.at_once += 1
        assert self.at_once == 1
        answer, self.made = self.made, self.made + 1
        await asyncio.sleep(self._takes_s)
        self.at_once -= 1
        return answer


async def test_all_who_ask_at_once_get_the_same() -> None:
    make = Counted()
    shared = SharedAnswer(make)
    assert set(await asyncio.gather(*(shared.get() for _ in range(100)))) == {0}
    assert make.made == 1


async def test_nobody_is_told_what_was_true_before_he_asked() -> None:
    make = Counted(0.1)
    shared = SharedAnswer(make, per_second=1000)
    first = asyncio.create_task(shared.get())
    await asyncio.sleep(0.005)
    assert make.at_once
    assert await asyncio.gather(shared.get(), shared.get()) == [1, 1]
    assert await first == 0
    for expected in (2, 3, 4):
        assert await shared.get() == expected


async def test_however_many_ask_it_is_made_only_so_often() -> None:
    make = Counted()
    shared = SharedAnswer(make, per_second=5, at_once=2)
    loop = asyncio.get_running_loop()
    began = loop.time()

    async def ask() -> None:
        for _ in range(5):
            await shared.get()

    await asyncio.gather(*(ask() for _ in range(50)))
    assert make.made <= 2 + 1 + 5 * (loop.time() - began)


async def test_who_goes_away_takes_nobodys_answer_and_a_failure_is_told_and_over() -> None:
    make = Counted()
    shared = SharedAnswer(make)
    leaving = asyncio.create_task(shared.get())
    staying = asyncio.create_task(shared.get())
    await asyncio.sleep(0)
    leaving.cancel()
    assert await staying == 0

    async def fail() -> int:
        raise ZeroDivisionError

    failing = SharedAnswer(fail)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            await failing.get()


@pytest.mark.parametrize("path", ["/stats", "/metrics"])
async def test_the_node_is_asked_once_for_all_who_want_its_counts(
    remote: httpx.AsyncClient, node: FakeNode, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    asked = 0

    async def stats() -> NodeStats:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0.05)
        return node.counts

    monkeypatch.setattr(node, "stats", stats)
    answers = await asyncio.gather(*(remote.get(path) for _ in range(60)))
    assert {answer.status_code for answer in answers} == {200}
    assert asked < 10


async def test_what_was_put_is_in_the_next_answer(
    remote: httpx.AsyncClient, local: httpx.AsyncClient, node: FakeNode
) -> None:
    node.processes = [Labels("shop")]
    for rate in (1.0, 2.0, 3.0):
        await local.put("/sampling", params={"rate": str(rate), "service": "shop"})
        [target] = (await remote.get("/targets")).json()
        assert target["rates"]["http"]["rate"] == rate
        answer = await remote.get("/sampling")
        assert [rule["rate"] for rule in answer.json()["rules"]] == [rate]
        assert answer.headers["ETag"] == f'"{answer.json()["revision"]}"'
