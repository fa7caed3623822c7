"""GET /entries: the kept entries as they come."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from fastapi.sse import EventSourceResponse

from spandial_api.node import Node
from spandial_api.node_states import EntryEvent
from spandial_api.parameters import only

router = APIRouter(tags=["node"])


async def _watched(
    request: Request,
    service: Annotated[str, Query(description="glob", examples=["checkout"])] = "*",
    env: Annotated[str, Query(description="glob", examples=["gray"])] = "*",
) -> AsyncIterator[AsyncIterator[EntryEvent]]:
    """A dependency and not a part of the route: it is left with the response. A route's own generator is left when
    the garbage collector finds it, and until then the kernel would emit for nobody."""
    node: Node = request.app.state.node
    async with node.watch(service, env) as entries:
        yield entries


@router.get("/entries", response_class=EventSourceResponse, dependencies=[Depends(only("service", "env"))])
async def get_entries(
    entries: Annotated[AsyncIterator[EntryEvent], Depends(_watched)],
) -> AsyncIterable[EntryEvent]:
    """A stream of server-sent events, one for every entry that the kernel keeps from now on."""
    async for entry in entries:
        yield entry
