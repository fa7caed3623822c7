"""GET /targets: the processes that the agent controls."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request

from spandial_api.node import Node, TargetState
from spandial_api.parameters import only

router = APIRouter(tags=["node"])


@router.get("/targets", dependencies=[Depends(only())])
async def get_targets(request: Request) -> list[TargetState]:
    """Every target, its labels, and the rate of each kind of entry with the rule that set it."""
    node: Node = request.app.state.node
    return node.targets()
