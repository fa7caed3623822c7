"""GET /healthz: what works, and one sentence for everything that does not."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request

from spandial_api.auth import Access
from spandial_api.control import Control
from spandial_api.node import Node
from spandial_api.node_states import Health
from spandial_api.parameters import only

router = APIRouter(tags=["node"])


@router.get("/healthz", dependencies=[Depends(only())])
async def get_health(request: Request) -> Health:
    """200 as long as the agent serves, also without the kernel side: `status` and `missing` tell."""
    node: Node = request.app.state.node
    access: Access = request.app.state.access
    control: Control = request.app.state.control
    health = node.health()
    access.token_file.refresh()
    troubles = [
        *(f"{sentence}." for sentence in (control.trouble, *control.damage) if sentence),
        access.token_file.trouble,
    ]
    if any(troubles):
        health.missing = [*health.missing, *filter(None, troubles)]
        health.status = "degraded"
    return health
