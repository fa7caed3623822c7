"""In what order requests are begun, and what there is only so much of."""

from __future__ import annotations

import asyncio

import pytest

from spandial_api.peers import PEER, Peer, Shares, peer_of
from spandial_api.turns import TurnLock, Turns

pytestmark = pytest.mark.anyio


async def test_peers_take_turns_however_many_requests_one_has() -> None:
    turns, begun = Turns(), []

    async def request(peer: str) -> None:
        await turns.take(peer)
        begun.append(peer)

    await asyncio.gather(*(request("greedy") for _ in range(100)), *(request("modest") for _ in range(2)))
    assert begun[:5] == ["greedy", "modest", "greedy", "modest", "greedy"]
    assert len(begun) == 102


async def test_what_the_loop_has_to_do_besides_waits_for_one_request_at_most() -> None:
    turns, begun, between = Turns(), [], []

    async def request() -> None:
        await turns.take("greedy")
        begun.append(1)

    async def other_work() -> None:
        while len(begun) < 50:
            before = len(begun)
            await asyncio.sleep(0)
            between.append(len(begun) - before)

    await asyncio.gather(*(request() for _ in range(50)), other_work())
    assert max(between) == 1


async def test_who_goes_away_before_his_turn_takes_none() -> None:
    turns = Turns()
    waiting = [asyncio.create_task(turns.take("a")) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[1].cancel()
    await asyncio.wait_for(waiting[2], 10)
    await asyncio.wait_for(turns.take("a"), 10)


async def test_who_waits_for_a_lock_waits_for_one_turn_of_each_other_peer_at_most() -> None:
    lock, had = TurnLock(), []

    async def work(peer: str) -> None:
        async with lock.turn(peer):
            had.append(peer)
            await asyncio.sleep(0)
            assert had[-1] == peer, "nobody else has it meanwhile"

    await asyncio.gather(*(work("greedy") for _ in range(100)), work("modest"))
    assert had[:3] == ["greedy", "greedy", "modest"]
    assert len(had) == 101


async def test_a_lock_is_free_again_whatever_becomes_of_who_has_it_or_waits_for_it() -> None:
    lock, had = TurnLock(), []

    async def work(number: int) -> None:
        async with lock.turn("a"):
            had.append(number)
            raise ValueError

    async with lock.turn("a"):
        working = [asyncio.create_task(work(number)) for number in range(4)]
        await asyncio.sleep(0)
        working[0].cancel()  # while it waits
        await asyncio.sleep(0)
    working[1].cancel()  # once it is its turn
    await asyncio.gather(*working, return_exceptions=True)
    assert had == [2, 3]
    async with asyncio.timeout(10), lock.turn("b"):
        pass


async def test_each_has_a_share_and_all_together_a_bound() -> None:
    shares = Shares(total=10, each=4)
    assert shares.take("a", 4)
    assert not shares.take("a")
    assert shares.take("b", 4)
    assert not shares.take("c", 3)
    assert shares.take("c", 2)
    shares.give("a", 4)
    assert shares.take("c", 2)
    assert shares.refused == 2


async def test_nothing_is_remembered_of_those_who_have_nothing() -> None:
    shares = Shares(total=3, each=1)
    for number in range(1000):
        if shares.take(str(number)):
            shares.give(str(number))
        shares.take(str(number), 5)
    assert not shares._taken


async def test_a_peer_is_who_has_connected_or_the_address() -> None:
    assert peer_of({"type": "http", PEER: Peer("uid 7", 3), "client": ("10.0.0.1", 5)}) == Peer("uid 7", 3)
    assert peer_of({"type": "http", "client": ("10.0.0.1", 5)}).name == "10.0.0.1"
    assert peer_of({"type": "http", "client": None}).name == "somewhere"
