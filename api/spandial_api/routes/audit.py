"""GET /audit: who changed which rules, when and why; POST /sampling/undo: make a revision as if it had not been."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response
from pydantic import BaseModel, Field

from spandial_api.audit import UndoConflict
from spandial_api.auth import Principal, may_write
from spandial_api.control import Author, Control, Expected
from spandial_api.parameters import only
from spandial_api.preconditions import etag, expected_revision
from spandial_api.problems import no_such_revision
from spandial_api.requests import Why
from spandial_api.states import AuditEntry, AuditLog
from spandial_api.store import AUDIT_MAX

router = APIRouter(tags=["audit"])

_REVISION_MAX = 2**62


class AuditQuery(BaseModel):
    """Which revisions."""

    limit: int = Field(100, ge=1, le=1000)
    before: int | None = Field(None, ge=1, le=_REVISION_MAX, description="older than this revision", examples=[7])


class UndoQuery(BaseModel):
    """Which revision is to be undone."""

    revision: int = Field(ge=1, le=_REVISION_MAX, examples=[7])
    why: Why = Field("", description="for the audit log")


_UNDO = [Depends(may_write), Depends(only(*UndoQuery.model_fields))]  # first: who may not write is told so alone


@router.get("/audit", dependencies=[Depends(only(*AuditQuery.model_fields))])
async def get_audit(request: Request, query: Annotated[AuditQuery, Query()]) -> AuditLog:
    """The latest revisions, latest first: who changed which rules, when and why, with each rule before and after."""
    control: Control = request.app.state.control
    return AuditLog(entries=[AuditEntry.of(entry) for entry in await control.audit(query.limit, query.before)])


@router.put("/sampling/undo", responses=no_such_revision, dependencies=_UNDO)
@router.post("/sampling/undo", responses=no_such_revision, dependencies=_UNDO)
async def undo_revision(
    request: Request,
    response: Response,
    writer: Annotated[Principal, Depends(may_write)],
    query: Annotated[UndoQuery, Query()],
    expected: Annotated[Expected, Depends(expected_revision)],
) -> AuditEntry:
    """Make the rules that a revision changed what they were before it, under a revision of its own. Refused (409) where
    one of them has been changed since."""
    control: Control = request.app.state.control
    try:
        undone = await control.undo(query.revision, Author(writer.name, query.why), writer.check, expected)
    except KeyError:
        oldest = max(control.book.revision - AUDIT_MAX + 1, 1)
        detail = f"there is no revision {query.revision} in the audit log, which goes from {oldest} to "
        raise HTTPException(404, f"{detail}{control.book.revision}") from None
    except UndoConflict as error:
        raise HTTPException(409, str(error)) from None
    response.headers["ETag"] = etag(undone.revision)
    return AuditEntry.of(undone)
