"""GET /entries: server-sent events."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import Message

from tests.spandial_api.fake_node import FakeNode, entry

pytestmark = pytest.mark.anyio


async def stream(client: httpx.AsyncClient, **parameters: str) -> list[dict[str, Any]]:
    answer = await client.get("/entries", params=parameters)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    return [json.loads(line.removeprefix("data:")) for line in answer.text.splitlines() if line.startswith("data:")]


async def test_each_entry_is_an_event(remote: httpx.AsyncClient, node: FakeNode) -> None:
    node.entries = [entry(path="/one"), entry(path="/two")]
    events = await stream(remote)
    assert [event["path"] for event in events] == ["/one", "/two"]
    assert events[0] == entry(path="/one").model_dump()


@pytest.mark.parametrize(
    ("parameters", "watched"),
    [
        ({}, ("*", "*")),
        ({"service": "check*"}, ("check*", "*")),
        ({"env": "gr?y"}, ("*", "gr?y")),
        ({"service": "checkout", "env": "gray"}, ("checkout", "gray")),
    ],
)
async def test_the_node_is_asked_for_what_the_globs_pick(
    remote: httpx.AsyncClient, node: FakeNode, parameters: dict[str, str], watched: tuple[str, str]
) -> None:
    await stream(remote, **parameters)
    assert node.watched == watched


async def test_a_path_cannot_end_its_event(remote: httpx.AsyncClient, node: FakeNode) -> None:
    node.entries = [entry(path="/a\n\ndata: {}\r\nevent: x")]
    [event] = await stream(remote)
    assert event["path"] == "/a\n\ndata: {}\r\nevent: x"


async def test_a_reader_who_goes_away_is_watched_for_no_longer(app: FastAPI, node: FakeNode) -> None:
    first = asyncio.Event()

    async def receive() -> Message:
        await first.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message.get("body"):
            assert node.watchers == 1
            first.set()

    node.entries, node.endless = [entry()], True
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "path": "/entries",
        "raw_path": b"/entries",
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1")],
    }
    await asyncio.wait_for(app(scope, receive, send), 10)
    assert node.watchers == 0


async def test_of_one_peer_there_are_only_so_many_streams_and_the_unix_socket_has_its_own(
    app: FastAPI, remote: httpx.AsyncClient, local: httpx.AsyncClient, node: FakeNode
) -> None:
    over_tcp, _ = app.state.streams
    node.entries = [entry()]
    for _ in range(20):  # each is given back
        assert len(await stream(remote)) == 1
    while over_tcp.take("127.0.0.1"):
        pass
    answer = await remote.get("/entries")
    assert answer.status_code == 429
    assert answer.headers["Retry-After"]
    assert len(await stream(local)) == 1
    over_tcp.give("127.0.0.1")
    assert len(await stream(remote)) == 1
    for number in range(1000):
        over_tcp.take(f"uid {number}")
    assert (await remote.get("/entries")).status_code == 429


async def test_a_glob_is_no_longer_than_a_label(remote: httpx.AsyncClient) -> None:
    assert (await remote.get("/entries", params={"service": "*a" * 128})).status_code == 422
