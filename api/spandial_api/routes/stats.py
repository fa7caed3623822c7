"""GET /stats: what kernel and hooks counted."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request

from spandial_api.node import Node
from spandial_api.node_states import NodeStats
from spandial_api.parameters import only

router = APIRouter(tags=["node"])


@router.get("/stats", dependencies=[Depends(only())])
async def get_stats(request: Request) -> NodeStats:
    """The kernel's counts and the hooks' side by side, their difference, and every loss."""
    node: Node = request.app.state.node
    return await node.stats()
