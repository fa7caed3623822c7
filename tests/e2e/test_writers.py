"""Many writers at once: no change is lost, none is reordered, and everybody reads what the changes before made."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable

import httpx
import pytest

from tests.agent_process import PATIENCE_S, AgentProcess
from tests.e2e.history import Operation, faults

pytestmark = [pytest.mark.e2e]

WRITERS = 64
SECONDS = float(os.environ.get("SPANDIAL_TEST_WRITERS_SECONDS", "10"))


async def _writer(client: httpx.AsyncClient, number: int, end: float, history: list[Operation], rival: bool) -> None:
    """A rival means every change for the revision that it knows; the others only some."""
    chance = random.Random(number)
    known = 0
    while time.monotonic() < end:
        service = f"s{chance.randrange(8)}"
        rate, expected, wanted = chance.randrange(1, 10**6) / 10**4, None, chance.random() * (not rival) or 0.3
        called = time.monotonic()
        if wanted < 0.2:
            answer = await client.get("/sampling")
            body = answer.json()
            known = body["revision"]
            read = {rule["selector"]: rule["rate"] for rule in body["rules"]}
            history.append(Operation(called, time.monotonic(), known, read=read))
            continue
        headers = {}
        if wanted < 0.5:
            expected = known
            headers["If-Match"] = f'"{known}"'
        if wanted < 0.9:
            answer = await client.put("/sampling", params={"service": service, "rate": f"{rate}"}, headers=headers)
        else:
            answer = await client.delete("/sampling", params={"service": service}, headers=headers)
        answered = time.monotonic()
        if answer.status_code == 404:
            continue
        known = int(answer.headers["ETag"].strip('"'))
        if answer.status_code == 412:
            history.append(Operation(called, answered, known, expected=expected))
            continue
        assert answer.status_code == 200, answer.text
        wrote = (f"service={service}", answer.json()["rate"] if wanted < 0.9 else None)
        history.append(Operation(called, answered, answer.json()["revision"], wrote, expected))


async def _write(agent: AgentProcess) -> list[Operation]:
    history: list[Operation] = []
    transport = httpx.AsyncHTTPTransport(
        uds=str(agent.run_dir / "api.sock"), limits=httpx.Limits(max_connections=WRITERS)
    )
    async with httpx.AsyncClient(transport=transport, base_url="http://spandial", timeout=PATIENCE_S) as client:
        for rivals, seconds in ((False, SECONDS * 0.8), (True, SECONDS * 0.2)):
            end = time.monotonic() + seconds
            await asyncio.gather(*(_writer(client, number, end, history, rivals) for number in range(WRITERS)))
        called = time.monotonic()
        body = (await client.get("/sampling")).json()
        read = {rule["selector"]: rule["rate"] for rule in body["rules"]}
        history.append(Operation(called, time.monotonic(), body["revision"], read=read))
    return history


@pytest.mark.timeout(SECONDS + 1200)
def test_sixty_four_writers_lose_no_change_and_reorder_none(make_agent: Callable[..., AgentProcess]) -> None:
    agent = make_agent(SPANDIAL_TABLE="memfd", SPANDIAL_WRITES_PER_SECOND="0")
    history = asyncio.run(_write(agent))
    writes = sum(operation.wrote is not None for operation in history)
    print(f"{writes} changes, {len(history) - writes} reads and refusals by {WRITERS} writers in {SECONDS:g} s")
    assert faults(history) == []
    assert writes > WRITERS
    assert any(operation.expected is not None and operation.wrote for operation in history)
    assert any(operation.expected is not None and not operation.wrote for operation in history)
    agent.kill()
    agent.start()
    assert agent.get("/sampling")["revision"] == max(operation.revision for operation in history)
    log = agent.get("/audit?limit=1000")["entries"]
    made = {op.revision: op.wrote for op in history if op.wrote is not None}
    for entry in log:
        [change] = entry["changes"]
        assert made[entry["revision"]] == (change["selector"], change["after"] and change["after"]["rate"])


A, B = ("a", 1.0), ("b", 2.0)


def test_a_history_that_one_order_explains_has_no_fault() -> None:
    overlapping = [Operation(0, 9, 2, B), Operation(0, 9, 1, A), Operation(0, 9, 1, read={"a": 1.0})]
    assert faults([*overlapping, Operation(10, 11, 2, read={"a": 1.0, "b": 2.0})]) == []
    assert faults([Operation(0, 1, 1, A), Operation(2, 3, 2, ("a", None)), Operation(4, 5, 2, read={})]) == []


@pytest.mark.parametrize(
    "history",
    [
        pytest.param([Operation(0, 1, 1, A), Operation(0, 1, 1, B)], id="one revision twice"),
        pytest.param([Operation(0, 1, 1, A), Operation(0, 1, 3, B)], id="a lost revision"),
        pytest.param([Operation(0, 1, 2, A), Operation(2, 3, 1, B)], id="reordered"),
        pytest.param([Operation(0, 1, 1, A), Operation(2, 3, 0, read={})], id="a stale read"),
        pytest.param([Operation(0, 9, 1, A), Operation(0, 9, 1, read={})], id="a read without the change"),
        pytest.param([Operation(0, 9, 1, A), Operation(0, 9, 2, B, expected=0)], id="a change meant for another"),
        pytest.param([Operation(0, 9, 0, expected=0)], id="refused without a reason"),
    ],
)
def test_a_history_that_no_order_explains_is_told(history: list[Operation]) -> None:
    assert faults(history)
