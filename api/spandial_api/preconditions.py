"""ETag and If-Match (RFC 9110, sections 8.8.3 and 13.1.1): the rules' revision."""

from __future__ import annotations

from typing import Annotated

from fastapi import Header, Request

from spandial_api.control import ANY_REVISION, Expected

__all__ = ["etag", "expected_revision"]


async def expected_revision(
    request: Request,
    if_match: Annotated[
        str | None,
        Header(
            description="change nothing (412) unless this is the rules' ETag, which is their revision",
            examples=["*"],
            json_schema_extra={"pattern": r'^(\*|"[0-9]{1,18}"(, "[0-9]{1,18}"){0,9})$'},
        ),
    ] = None,
) -> Expected:
    """A dependency: the revision that a change is meant for."""
    if (
        if_match is None
    ):  # FastAPI says so of an empty header, too, which names no revision: a variable that was not set
        if_match = request.headers.get("if-match", "*")
    if if_match.strip() == "*":
        return ANY_REVISION
    tags = {tag.strip() for tag in if_match.split(",")}
    return lambda revision: etag(revision) in tags


def etag(revision: int) -> str:
    return f'"{revision}"'
