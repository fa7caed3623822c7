"""How long a request's body may be."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from spandial_api.body_limit import BODY_MAX
from spandial_api.rules import RuleBook
from tests.spandial_api.fake_node import FakeNode

pytestmark = pytest.mark.anyio

JSON = {"Content-Type": "application/json"}
BATCH = b'{"put": [{"rate": 30, "service": "checkout"}]}'


async def test_a_body_that_is_just_short_enough_is_read(local: httpx.AsyncClient) -> None:
    body = BATCH + b" " * (BODY_MAX - len(BATCH))
    assert (await local.post("/sampling/batch", content=body, headers=JSON)).status_code == 200


async def test_a_longer_one_is_refused_and_changes_nothing(local: httpx.AsyncClient, node: FakeNode) -> None:
    body = BATCH + b" " * (BODY_MAX - len(BATCH) + 1)
    answer = await local.post("/sampling/batch", content=body, headers=JSON)
    assert (answer.status_code, answer.json()) == (
        413,
        {"detail": f"a body has at most {BODY_MAX} bytes; nothing was changed"},
    )
    assert node.applied == [RuleBook()]


async def test_no_more_of_it_is_read_than_that(remote: httpx.AsyncClient) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 100 * BODY_MAX:
            sent += 65_536
            yield b" " * 65_536

    assert (await remote.post("/sampling/batch", content=endless(), headers=JSON)).status_code == 413
    assert sent <= BODY_MAX + 65_536


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (b"\xff\xfe", {}),
        (BATCH, {"Content-Type": "text/plain"}),
        (b'{"put": [{"rate": NaN, "service": NaN}]}', JSON),
        (b'{"put": [{"rate": 1, "service": {"\\ud800": 1}}]}', JSON),
        (b"[" * 100_000, JSON),
    ],
)
async def test_no_body_makes_the_answer_fail(
    local: httpx.AsyncClient, node: FakeNode, content: bytes, headers: dict[str, str]
) -> None:
    answer = await local.post("/sampling/batch", content=content, headers=headers)
    assert answer.status_code in (400, 422)
    assert answer.json()["detail"]
    assert node.applied == [RuleBook()]
