"""POST /sampling/restore: the end of a release, for tools that can only POST and may come twice or too late."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, Field

from spandial_api.auth import Principal, may_write
from spandial_api.control import Control
from spandial_api.parameters import only
from spandial_api.routes.sampling import SelectorQuery
from spandial_api.selectors import selector_text

__all__ = ["router"]

router = APIRouter(tags=["sampling"])


class Restored(BaseModel):
    """What was in force before a rule is in force again."""

    removed: str | None = Field(description="the rule's selector; null where it had gone", examples=["env=gray"])
    revision: int


@router.post("/sampling/restore", dependencies=[Depends(only(*SelectorQuery.model_fields))])
async def restore(
    request: Request,
    response: Response,
    writer: Annotated[Principal, Depends(may_write)],
    query: Annotated[SelectorQuery, Query()],
) -> Restored:
    """Remove the rule of exactly this selector, if it has not ended already: 200 in any case, as often as it is asked,
    which a release tool needs."""
    control: Control = request.app.state.control
    selector = query.selector()
    writer.check(selector)
    try:
        revision = await control.remove(selector)
    except KeyError:
        return Restored(removed=None, revision=control.book.revision)
    response.headers["ETag"] = f'"{revision}"'
    return Restored(removed=selector_text(selector), revision=revision)
