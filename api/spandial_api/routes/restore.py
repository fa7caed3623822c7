"""POST /sampling/restore: the end of a release, for tools that can only POST and may come twice or too late."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, Field

from spandial_api.auth import Principal, may_write
from spandial_api.control import Author, Control
from spandial_api.parameters import only
from spandial_api.preconditions import etag
from spandial_api.requests import RemovalQuery, label_parameters
from spandial_api.selectors import selector_text

router = APIRouter(tags=["sampling"])


class Restored(BaseModel):
    """What was in force before a rule is in force again."""

    removed: str | None = Field(description="the rule's selector; null where it had gone", examples=["env=gray"])
    revision: int


_RESTORE = [Depends(may_write), Depends(only(*RemovalQuery.model_fields, "label.*"))]  # first: who may not write


@router.post("/sampling/restore", dependencies=_RESTORE)
async def restore_rates(
    request: Request,
    response: Response,
    writer: Annotated[Principal, Depends(may_write)],
    query: Annotated[RemovalQuery, Query()],
    labels: Annotated[tuple[tuple[str, str], ...], Depends(label_parameters)],
) -> Restored:
    """Remove the rule of exactly this selector, if it has not ended already: 200 in any case, as often as it is asked,
    which a release tool needs."""
    control: Control = request.app.state.control
    selector = query.selector(labels)
    writer.check(selector)
    removed = None
    try:
        revision = await control.remove(selector, Author(writer.name, query.why))
        removed = selector_text(selector)
    except KeyError:
        revision = control.book.revision
    response.headers["ETag"] = etag(revision)
    return Restored(removed=removed, revision=revision)
