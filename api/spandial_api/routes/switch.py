"""/switch: everything of the agent's taken away at once, and back."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, HTTPException, Query, Request
from pydantic import BaseModel, Field

from spandial_api.auth import Principal, may_admin
from spandial_api.control import Author
from spandial_api.durations import parse_duration
from spandial_api.parameters import only
from spandial_api.problems import ttl_of_on
from spandial_api.requests import Ttl, Why
from spandial_api.selectors import Selector
from spandial_api.store import StoreError
from spandial_api.switch import Switch

__all__ = ["router"]

router = APIRouter(tags=["switch"])


class SwitchQuery(BaseModel):
    """On or off."""

    state: Literal["on", "off"]
    ttl: Ttl | None = Field(None, description="off: on again after so long", examples=["10m"])
    why: Why = ""


class SwitchState(BaseModel):
    """Whether the agent captures, and hooks obey the rules."""

    state: Literal["on", "off"]
    who: str = Field(description="who switched it off; empty while it is on", examples=["local"])
    why: str
    time: float | None = Field(description="when, in Unix time in seconds")
    until: float | None = Field(description="when it is on again, in Unix time in seconds; null: nobody knows")
    fallback_rate: float | None = Field(
        description="percentage that hooks use while it is off: that of the rule for everything; null: there is none, "
        "and each uses its own (OTEL_TRACES_SAMPLER_ARG, 100 where that is not set)"
    )


def _switch(request: Request) -> Switch:
    switch: Switch = request.app.state.switch
    return switch


def _state(switch: Switch) -> SwitchState:
    if switch.off is None:
        return SwitchState(state="on", who="", why="", time=None, until=None, fallback_rate=switch.fallback_rate)
    return SwitchState(state="off", **vars(switch.off), fallback_rate=switch.fallback_rate)


_WRITES = [Depends(may_admin), Depends(only(*SwitchQuery.model_fields))]


@router.put("/switch", responses=ttl_of_on, dependencies=_WRITES)
@router.post("/switch", responses=ttl_of_on, dependencies=_WRITES)
async def put_switch(
    request: Request, writer: Annotated[Principal, Depends(may_admin)], query: Annotated[SwitchQuery, Query()]
) -> SwitchState:
    """Off: all programs and probes leave the kernel at once, and hooks use their fallback rates, as after the agent's
    death. Rules can be changed, and hold when it is on again. It stays off over a restart of the agent."""
    writer.check(Selector())
    switch, author = _switch(request), Author(writer.name, query.why)
    if query.state == "on":
        if query.ttl is not None:
            raise HTTPException(409, "a ttl is for state=off alone: what is on stays on; nothing was changed")
        await switch.turn_on(author)
        return _state(switch)
    try:
        await switch.turn_off(author, None if query.ttl is None else parse_duration(query.ttl))
    except StoreError as error:
        raise HTTPException(503, f"it is off, but a restart of the agent would switch it on: {error}") from error
    return _state(switch)


@router.get("/switch", dependencies=[Depends(only())])
async def get_switch(request: Request) -> SwitchState:
    """Whether the agent is on; if not, who switched it off, why, and until when."""
    return _state(_switch(request))
