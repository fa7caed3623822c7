"""GET /healthz: what works, and one sentence for everything that does not."""

from __future__ import annotations

from fastapi import APIRouter, Request

from spandial_api.node import Health, Node

router = APIRouter(tags=["node"])


@router.get("/healthz")
async def get_health(request: Request) -> Health:
    """200 as long as the agent serves, also without the kernel side: `status` and `missing` tell."""
    node: Node = request.app.state.node
    return node.health()
