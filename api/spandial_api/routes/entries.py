"""GET /entries: the kept entries as they come."""

from __future__ import annotations

from collections.abc import AsyncIterable
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from fastapi.sse import EventSourceResponse

from spandial_api.node import EntryEvent, Node
from spandial_api.parameters import only

router = APIRouter(tags=["node"])


@router.get("/entries", response_class=EventSourceResponse, dependencies=[Depends(only("service", "env"))])
async def get_entries(
    request: Request,
    service: Annotated[str, Query(description="glob")] = "*",
    env: Annotated[str, Query(description="glob")] = "*",
) -> AsyncIterable[EntryEvent]:
    """A stream of server-sent events, one for every entry that the kernel keeps from now on."""
    node: Node = request.app.state.node
    async with node.watch(service, env) as entries:
        async for entry in entries:
            yield entry
