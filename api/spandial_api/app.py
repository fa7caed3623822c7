"""The FastAPI application, built around a node and a store."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response

from spandial_api.auth import REFUSALS, Access, Refusal, may_read
from spandial_api.body_limit import BodyLimit
from spandial_api.budgets import Limits
from spandial_api.control import Control, RevisionConflict, TooManyRules
from spandial_api.guard import Guard
from spandial_api.node import Node
from spandial_api.origins import OwnOrigin
from spandial_api.peers import InTurn, Shares
from spandial_api.problems import Problems, describe
from spandial_api.remote import RemoteSampling
from spandial_api.routes import (
    audit,
    budgets,
    entries,
    explain,
    health,
    jaeger,
    metrics,
    restore,
    sampling,
    stats,
    switch,
    targets,
    xray,
)
from spandial_api.store import StoreError
from spandial_api.switch import Switch

__all__ = ["build_app"]

_STREAMS = 48
_STREAMS_OF_A_PEER = 8


def build_app(
    control: Control,
    node: Node,
    *,
    access: Access,
    version: str,
    max_rate_without_ttl: float = 100.0,
    guard: Guard | None = None,
    remote: RemoteSampling | None = None,
    turned: Switch | None = None,
    host_names: Collection[str] = (),
) -> FastAPI:
    """The application. It starts nothing by itself: control, node and access are the caller's.

    Args:
        access: who is let in over TCP.
        max_rate_without_ttl: a rule of a greater rate must say when it ends.
        guard: budget and quotas; without it there are those that are stored.
        remote: what SDKs without the hook are told.
        turned: the node's switch; without it there is the one that is stored.
        host_names: by which the interface is asked over TCP, beside addresses and `localhost`.
    """
    app = FastAPI(
        title="spandial",
        version=version,
        description="One dial for the trace-sampling rate of every process on this node.",
        responses={422: {"model": Problems, "description": "Something in the request is wrong"}},
    )
    app.state.control = control
    app.state.guard = guard or Guard(control, node, Limits())
    app.state.node = node
    app.state.switch = turned or Switch(control, node)
    app.state.streams = Shares(_STREAMS, _STREAMS_OF_A_PEER), Shares(_STREAMS, _STREAMS)  # over TCP, over the socket
    app.state.access = access
    app.state.max_rate_without_ttl = max_rate_without_ttl
    app.state.remote = remote or RemoteSampling(control, node)
    app.state.stats, app.state.targets = stats.stats_of(node), targets.targets_of(node)
    app.state.metrics = metrics.metrics_of(node, access, app.state.guard, app.state.remote)
    app.state.rules = sampling.rules_of(control)
    # Jaeger's before the rules: GET /sampling that names a service.
    nouns = (jaeger, xray, sampling, restore, explain, audit, budgets, switch, targets, stats, entries, metrics)
    guarded = [module.router for module in nouns]
    for router in guarded:
        app.include_router(router, dependencies=[Depends(may_read)], responses=REFUSALS)
    app.include_router(health.router)  # whoever looks whether it is alive has no token
    app.add_middleware(BodyLimit)
    app.add_middleware(OwnOrigin, names=host_names, refused=access.refused)
    app.add_middleware(InTurn)  # first: the one that is added last
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(RequestValidationError, _bad_input)
    app.add_exception_handler(StoreError, _bad_store)
    app.add_exception_handler(RevisionConflict, sampling.conflict)
    app.add_exception_handler(TooManyRules, sampling.full)
    describe(app, [*guarded, health.router])
    return app


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    request.app.state.access.refused[error.reason] += 1
    return await http_exception_handler(request, error)


async def _bad_input(_request: Request, error: Exception) -> JSONResponse:
    """422 with the field, what was received and what is allowed."""
    assert isinstance(error, RequestValidationError)
    problems = [
        {
            "field": str(item["loc"][-1]),
            # Of a missing parameter, pydantic's input is all the others.
            "received": None if item["type"] == "missing" else _sayable(item.get("input")),
            "allowed": str(item["msg"]).removeprefix("Value error, "),
        }
        for item in error.errors()
    ]
    return JSONResponse({"detail": problems}, status_code=422)


def _sayable(received: Any) -> Any:
    """What JSON can say of what was received: bytes, NaN and halves of characters it cannot."""
    try:
        json.dumps(received, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError):
        return repr(received)[:200]
    return received


async def _bad_store(_request: Request, error: Exception) -> JSONResponse:
    """503: nothing was changed, in the table or on disk."""
    return JSONResponse({"detail": f"{error}; nothing was changed"}, status_code=503)
