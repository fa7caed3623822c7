"""GET /targets: the processes that the agent controls; GET /targets/explain: why a process is one, or is none."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import TypeAdapter

from spandial_api.node import Node
from spandial_api.node_states import TargetExplanation, TargetState
from spandial_api.parameters import only
from spandial_api.shared_answer import SharedAnswer

router = APIRouter(tags=["node"])

_TARGETS = TypeAdapter(list[TargetState])
_PID_MAX = (1 << 31) - 1  # pid_t


def targets_of(node: Node) -> SharedAnswer[bytes]:
    """For all who ask."""

    async def make() -> bytes:
        return _TARGETS.dump_json(node.targets())

    return SharedAnswer(make)


@router.get("/targets", dependencies=[Depends(only())], response_model=list[TargetState])
async def get_targets(request: Request) -> Response:
    """Every target, its labels, why it is one, and the rate of each kind of entry with the rule that set it."""
    shared: SharedAnswer[bytes] = request.app.state.targets
    return Response(await shared.get(), media_type="application/json")


@router.get("/targets/explain", dependencies=[Depends(only("pid"))])
async def explain_target(
    request: Request, pid: Annotated[int, Query(ge=1, le=_PID_MAX, description="process id", examples=[4711])]
) -> TargetExplanation:
    """Why a process is a target or is none, and what each rule of discovery says of it, after a new look at it.

    Also the ports that it listens on, and its open connections.
    """
    node: Node = request.app.state.node
    return await node.explain(pid)
