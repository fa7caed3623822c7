"""Query parameters that no route takes silently: unknown ones, and one given twice."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import HTTPException, Request

__all__ = ["only"]


def only(*names: str) -> Callable[[Request], None]:
    """A dependency that refuses (422) every other parameter, and these if they come more than once."""

    def check(request: Request) -> None:
        problems: list[dict[str, object]] = []
        for name in dict.fromkeys(request.query_params):
            received = request.query_params.getlist(name)
            if name not in names:
                allowed = "no such parameter; there are: " + (", ".join(names) or "none")
                problems.append({"field": name, "received": received[0], "allowed": allowed})
            elif len(received) > 1:
                problems.append({"field": name, "received": received, "allowed": "one value"})
        if problems:
            raise HTTPException(422, problems)

    return check
