"""GET /targets: the processes that the agent controls."""

from __future__ import annotations

from fastapi import APIRouter, Request

from spandial_api.node import Node, TargetState

router = APIRouter(tags=["node"])


@router.get("/targets")
async def get_targets(request: Request) -> list[TargetState]:
    """Every target, its labels, and the rate of each kind of entry with the rule that set it."""
    node: Node = request.app.state.node
    return node.targets()
