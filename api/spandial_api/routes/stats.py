"""GET /stats: what kernel and hooks counted."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request, Response

from spandial_api.node import Node
from spandial_api.node_states import NodeStats
from spandial_api.parameters import only
from spandial_api.shared_answer import SharedAnswer

router = APIRouter(tags=["node"])


def stats_of(node: Node) -> SharedAnswer[bytes]:
    """For all who ask: each answer asks every hook to publish."""

    async def make() -> bytes:
        return (await node.stats()).model_dump_json().encode()

    return SharedAnswer(make)


@router.get("/stats", dependencies=[Depends(only())], response_model=NodeStats)
async def get_stats(request: Request) -> Response:
    """The kernel's counts and the hooks' side by side, their difference, and every loss."""
    shared: SharedAnswer[bytes] = request.app.state.stats
    return Response(await shared.get(), media_type="application/json")
