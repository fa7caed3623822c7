"""Paths without what is in them of people and things. Pure."""

from __future__ import annotations

import re
from typing import Literal

__all__ = ["HIDDEN", "PathRedaction", "redact_path"]

PathRedaction = Literal["off", "ids", "all"]

HIDDEN = "{}"
_SEGMENT_MAX = 40  # characters: what is longer is no word of a route
_VERSION = re.compile(r"v\d{1,3}", re.ASCII | re.IGNORECASE)  # of an API


def redact_path(path: str, how: PathRedaction) -> str:
    """A path as it may be shown and leave the machine.

    `ids` puts `{}` in the place of each segment with a digit in it (but `v1` and the like), with `@`, `%`, `=` or `;`,
    or of more than 40 characters: ids, dates, addresses, tokens. `all` leaves `{}` alone.
    """
    if how == "off" or not path:
        return path
    if how == "all":
        return HIDDEN if not path.startswith("/") else f"/{HIDDEN}"
    return "/".join(HIDDEN if _may_be_an_id(segment) else segment for segment in path.split("/"))


def _may_be_an_id(segment: str) -> bool:
    if len(segment) > _SEGMENT_MAX or not segment.isascii():
        return True
    return any(char.isdigit() or char in "@%=;" for char in segment) and not _VERSION.fullmatch(segment)
