"""GET /stats: what kernel and hooks counted."""

from __future__ import annotations

from fastapi import APIRouter, Request

from spandial_api.node import Node, NodeStats

router = APIRouter(tags=["node"])


@router.get("/stats")
async def get_stats(request: Request) -> NodeStats:
    """The kernel's counts and the hooks' side by side, their difference, and every loss."""
    node: Node = request.app.state.node
    return await node.stats()
