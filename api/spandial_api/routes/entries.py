"""GET /entries: the kept entries as they come."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from fastapi.sse import EventSourceResponse

from spandial.labels import LABEL_MAX
from spandial_api.auth import Refusal, is_trusted
from spandial_api.node import Node
from spandial_api.node_states import EntryEvent
from spandial_api.parameters import only
from spandial_api.peers import Shares, peer_of

router = APIRouter(tags=["node"])


async def _watched(
    request: Request,
    service: Annotated[str, Query(max_length=LABEL_MAX, description="glob", examples=["checkout"])] = "*",
    env: Annotated[str, Query(max_length=LABEL_MAX, description="glob", examples=["gray"])] = "*",
) -> AsyncIterator[AsyncIterator[EntryEvent]]:
    """A dependency and not a part of the route: it is left with the response. A route's own generator is left when
    the garbage collector finds it, and until then the kernel would emit for nobody."""
    node: Node = request.app.state.node
    over_tcp, over_unix = request.app.state.streams
    streams: Shares = over_unix if is_trusted(request.scope) else over_tcp
    peer = peer_of(request.scope).name
    if not streams.take(peer):
        sentence = f"{peer} watches too often, or all together do: end a stream that is not needed, or try again later"
        raise Refusal(429, sentence, "streams", {"Retry-After": "10"})
    try:
        async with node.watch(service, env) as entries:
            yield entries
    finally:
        streams.give(peer)


@router.get("/entries", response_class=EventSourceResponse, dependencies=[Depends(only("service", "env"))])
async def get_entries(
    entries: Annotated[AsyncIterator[EntryEvent], Depends(_watched)],
) -> AsyncIterable[EntryEvent]:
    """A stream of server-sent events, one for every entry that the kernel keeps from now on."""
    async for entry in entries:
        yield entry
