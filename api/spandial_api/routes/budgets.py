"""/budget and /quotas: what the node may keep, whatever its rules ask for."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Query, Request
from pydantic import BaseModel, Field

from spandial.labels import LABEL_MAX
from spandial_api.auth import Principal, may_admin
from spandial_api.breaker import CircuitState
from spandial_api.control import Author
from spandial_api.guard import QUOTAS_MAX, Guard, TooManyQuotas, Written
from spandial_api.node import Node
from spandial_api.parameters import only
from spandial_api.problems import too_many
from spandial_api.requests import Why
from spandial_api.selectors import Selector

__all__ = ["router"]

router = APIRouter(tags=["limits"])

_MAX = 1e9

Writer = Annotated[Principal, Depends(may_admin)]
Entries = Annotated[float, Field(gt=0, le=_MAX, description="kept entries a second on this node", examples=[5000])]
Tenant = Annotated[str, Field(min_length=1, max_length=LABEL_MAX, description="label `tenant`", examples=["acme"])]


class WhyQuery(BaseModel):
    """Why something is changed."""

    why: Why = ""


class BudgetQuery(WhyQuery):
    """A budget."""

    entries: Entries


class TenantQuery(WhyQuery):
    """A tenant."""

    tenant: Tenant


class QuotaQuery(TenantQuery):
    """A tenant's quota."""

    entries: Entries


class BudgetState(BaseModel):
    """The node's budget, and what it is used for."""

    entries: float | None = Field(description="kept entries a second, all targets together; null: no budget")
    demand: float | None = Field(
        description="kept entries a second that the rules ask for; null where there is neither a budget nor a quota"
    )
    limited: int = Field(description="targets whose rates the budget holds below those of the rules")
    who: str = Field(description="who set it; empty: SPANDIAL_BUDGET", examples=["local"])
    why: str
    time: float | None = Field(description="when, in Unix time in seconds")


class QuotaState(BaseModel):
    """A tenant's quota and circuit."""

    tenant: str
    entries: float = Field(description="kept entries a second")
    demand: float = Field(description="kept entries a second that the rules ask for, whatever the circuit breaker does")
    circuit: CircuitState
    lasted: float | None = Field(
        description="seconds for which the demand has been too great (closed), or small enough again (half-open)"
    )
    open_for: list[int] = Field(
        default=[],
        description="users (uid) whose processes alone are held, while the tenant's others go on: they ask for more "
        "than their share of the quota",
    )
    who: str = Field(description="who set it; empty: SPANDIAL_QUOTA", examples=["local"])
    why: str
    time: float | None = Field(description="when, in Unix time in seconds")


class Quotas(BaseModel):
    """The tenants that have a quota of their own, are here, or have a circuit that is not closed."""

    default: float | None = Field(description="kept entries a second of all other tenants; null: no quota")
    quotas: list[QuotaState]


def _guard(request: Request) -> Guard:
    guard: Guard = request.app.state.guard
    return guard


def _said(written: Written | None) -> dict[str, object]:
    if written is None:
        return {"who": "", "why": "", "time": None}
    return {"who": written.who, "why": written.why, "time": written.time}


def _budget(request: Request) -> BudgetState:
    guard, node = _guard(request), request.app.state.node
    use = node.budget_use()
    state = {"entries": guard.limits.budget, "demand": use.demand, "limited": use.limited, **_said(guard.budget)}
    return BudgetState.model_validate(state)


def _quotas(request: Request) -> dict[str, QuotaState]:
    guard = _guard(request)
    node: Node = request.app.state.node
    uses = {use.tenant: use for use in node.tenant_uses()}
    states = {}
    for tenant in sorted({*uses, *guard.quotas}):
        quota, use = guard.limits.quota_of(tenant), uses.get(tenant)
        if quota is not None:
            states[tenant] = QuotaState.model_validate(
                {
                    "tenant": tenant,
                    "entries": quota,
                    "demand": use.demand if use else 0.0,
                    "circuit": use.circuit if use else "closed",
                    "lasted": use.lasted if use else None,
                    "open_for": use.open_for if use else [],
                    **_said(guard.quotas.get(tenant)),
                }
            )
    return states


@router.put("/budget", dependencies=[Depends(may_admin), Depends(only(*BudgetQuery.model_fields))])
@router.post("/budget", dependencies=[Depends(may_admin), Depends(only(*BudgetQuery.model_fields))])
async def put_budget(request: Request, writer: Writer, query: Annotated[BudgetQuery, Query()]) -> BudgetState:
    """Hold the node to so many kept entries a second: where the rules ask for more, rates are lowered, those of the
    targets that keep most first, and come back by themselves."""
    writer.check(Selector())
    await _guard(request).set_budget(query.entries, Author(writer.name, query.why))
    return _budget(request)


@router.delete("/budget", dependencies=[Depends(may_admin), Depends(only(*WhyQuery.model_fields))])
async def delete_budget(request: Request, writer: Writer, query: Annotated[WhyQuery, Query()]) -> BudgetState:
    """The budget of SPANDIAL_BUDGET again, or none."""
    writer.check(Selector())
    await _guard(request).set_budget(None, Author(writer.name, query.why))
    return _budget(request)


@router.get("/budget", dependencies=[Depends(only())])
async def get_budget(request: Request) -> BudgetState:
    """The budget, what the rules ask for, and how many targets are limited by it."""
    return _budget(request)


@router.put("/quotas", responses=too_many, dependencies=[Depends(may_admin), Depends(only(*QuotaQuery.model_fields))])
@router.post("/quotas", responses=too_many, dependencies=[Depends(may_admin), Depends(only(*QuotaQuery.model_fields))])
async def put_quota(request: Request, writer: Writer, query: Annotated[QuotaQuery, Query()]) -> QuotaState:
    """Give a tenant so many kept entries a second. Whose rules ask for much more, for long, is held at a low rate until
    they ask for less again."""
    writer.check(Selector(tenant=query.tenant))
    try:
        await _guard(request).set_quota(query.tenant, query.entries, Author(writer.name, query.why))
    except TooManyQuotas:
        raise HTTPException(409, f"there are {QUOTAS_MAX} quotas already: remove one first") from None
    return _quotas(request)[query.tenant]


@router.delete("/quotas", dependencies=[Depends(may_admin), Depends(only(*TenantQuery.model_fields))])
async def delete_quota(request: Request, writer: Writer, query: Annotated[TenantQuery, Query()]) -> Quotas:
    """The quota of SPANDIAL_QUOTA again, or none."""
    writer.check(Selector(tenant=query.tenant))
    try:
        await _guard(request).set_quota(query.tenant, None, Author(writer.name, query.why))
    except KeyError:
        raise HTTPException(404, f"tenant {query.tenant!r} has no quota of its own; GET /quotas lists them") from None
    return Quotas(default=_guard(request).limits.quota, quotas=list(_quotas(request).values()))


@router.get("/quotas", dependencies=[Depends(only())])
async def get_quotas(request: Request) -> Quotas:
    """The tenants' quotas, what their rules ask for, and the state of their circuits."""
    return Quotas(default=_guard(request).limits.quota, quotas=list(_quotas(request).values()))
