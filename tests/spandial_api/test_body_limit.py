"""How long a request's body may be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.types import ASGIApp, Message

from spandial_api.body_limit import BODY_MAX, BodyLimit
from spandial_api.rules import RuleBook
from tests.spandial_api.conftest import TOKEN
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


@pytest.mark.parametrize(
    ("path", "token", "status", "most"),
    [
        ("/sampling/batch", TOKEN, 413, BODY_MAX + 65_536),
        ("/SamplingTargets", "", 413, BODY_MAX + 65_536),
        ("/sampling/batch", "", 401, 0),
        ("/sampling/batch", "wrong", 401, 0),
    ],
)
async def test_no_more_of_it_is_read_than_that_and_nothing_of_who_may_not_write(
    remote: httpx.AsyncClient, path: str, token: str, status: int, most: int
) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 100 * BODY_MAX:
            sent += 65_536
            yield b" " * 65_536

    headers = JSON | ({"Authorization": f"Bearer {token}"} if token else {})
    assert (await remote.post(path, content=endless(), headers=headers)).status_code == status
    assert sent <= most


async def test_of_all_bodies_only_so_much_is_in_memory_and_of_one_peer_less(app: FastAPI) -> None:
    limit = BodyLimit(app, all_bodies=5_000, of_a_peer=3_000)
    answers: list[int] = []
    done = asyncio.Event()

    async def post(peer: str, size: int, finished: asyncio.Event) -> None:
        parts: list[Message] = [{"type": "http.request", "body": b" " * size, "more_body": True}]

        async def receive() -> Message:
            if parts:
                return parts.pop()
            await finished.wait()
            return {"type": "http.request", "body": b"{}", "more_body": False}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                answers.append(message["status"])

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/GetSamplingRules",
            "raw_path": b"/GetSamplingRules",
            "query_string": b"",
            "headers": [(b"host", b"127.0.0.1")],
            "client": (peer, 1),
        }
        await app_of(limit)(scope, receive, send)

    held = [asyncio.create_task(post("one", 1_400, done)) for _ in range(2)]
    await asyncio.sleep(0.1)
    ready = asyncio.Event()
    ready.set()
    await post("one", 1_400, ready)
    await post("other", 2_900, ready)
    assert answers == [503, 503]
    await post("other", 1_000, ready)
    assert answers[2:] == [200]
    done.set()
    await asyncio.gather(*held)
    await post("one", 1_400, ready)
    assert answers[3:] == [200, 200, 200]


def app_of(limit: ASGIApp) -> ASGIApp:
    """With what turns its exceptions into answers."""
    return ExceptionMiddleware(limit)


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
