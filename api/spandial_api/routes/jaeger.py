"""GET /sampling?service= and /api/sampling: Jaeger's remote sampling over HTTP."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Query, Request
from fastapi.routing import APIRoute
from starlette.datastructures import QueryParams
from starlette.routing import Match
from starlette.types import Scope

from spandial.labels import LABEL_MAX
from spandial_api.jaeger import Strategy
from spandial_api.parameters import connection_of, only, uid_of
from spandial_api.remote import RemoteSampling

_EXAMPLES = {
    "rate": {
        "summary": "a rate",
        "value": {"strategyType": "PROBABILISTIC", "probabilisticSampling": {"samplingRate": 0.3}},
    },
    "target": {
        "summary": "a throughput",
        "value": {"strategyType": "RATE_LIMITING", "rateLimitingSampling": {"maxTracesPerSecond": 100}},
    },
    "operations": {
        "summary": "rules by operation",
        "value": {
            "strategyType": "PROBABILISTIC",
            "probabilisticSampling": {"samplingRate": 0.01},
            "operationSampling": {
                "defaultSamplingProbability": 0.01,
                "defaultLowerBoundTracesPerSecond": 0.0,
                "perOperationStrategies": [
                    {"operation": "GET /pay", "probabilisticSampling": {"samplingRate": 1.0}},
                ],
            },
        },
    },
}


class _NamesService(APIRoute):
    """Only for requests that have the parameter `service`: without it GET /sampling lists the rules."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child = super().matches(scope)
        if match is Match.FULL and "service" not in QueryParams(scope.get("query_string", b"")):
            return Match.NONE, {}
        return match, child


router = APIRouter(tags=["SDKs without the hook"])
_by_service = APIRouter(route_class=_NamesService, include_in_schema=False)


async def _service(request: Request) -> str:
    """The one service that is asked for. Raises HTTPException 400, as the protocol has it."""
    received = request.query_params.getlist("service")
    if len(received) != 1 or not 0 < len(received[0]) <= LABEL_MAX:
        raise HTTPException(
            400, f"'service' must be given once, with 1 to {LABEL_MAX} characters; received {_shown(received)}"
        )
    return received[0]


def _shown(received: list[str]) -> str:
    return ", ".join(repr(each[:40]) for each in received[:3]) or "none"


_one_service = [Depends(_service), Depends(only("service", "env", "version"))]


@_by_service.get("/sampling", dependencies=_one_service, response_model_exclude_none=True)
@router.get(
    "/api/sampling",
    dependencies=_one_service,
    responses={
        200: {"content": {"application/json": {"examples": _EXAMPLES}}},
        400: {"description": "no service, an empty one, or several"},
    },
    response_model_exclude_none=True,
)
async def get_strategy(
    request: Request,
    service: Annotated[str, Query(min_length=1, max_length=LABEL_MAX, examples=["checkout"])],
    env: Annotated[str, Query(max_length=LABEL_MAX, description="the client's, where its URL can say so")] = "",
    version: Annotated[str, Query(max_length=LABEL_MAX, description="the same")] = "",
) -> Strategy:
    """What Jaeger's remote sampling says to a service: also at `/sampling?service=`."""
    remote: RemoteSampling = request.app.state.remote
    return await remote.strategy(service, env, version, connection_of(request), uid_of(request))


router.include_router(_by_service)
