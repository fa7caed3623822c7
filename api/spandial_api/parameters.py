"""Query parameters that no route takes silently: unknown ones, and one given twice."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import HTTPException, Request

__all__ = ["only"]


def only(*names: str) -> Callable[[Request], None]:
    """A dependency that refuses (422) every other parameter, and these if they come more than once. A name that ends
    with a star stands for all that begin so."""
    prefixes = tuple(name[:-1] for name in names if name.endswith("*"))

    def check(request: Request) -> None:
        problems: list[dict[str, object]] = []
        for name in dict.fromkeys(request.query_params):
            received = request.query_params.getlist(name)
            if name not in names and not (prefixes and name.startswith(prefixes)):
                allowed = "no such parameter; there are: " + (", ".join(names) or "none")
                problems.append({"field": name, "received": received[0], "allowed": allowed})
            elif len(received) > 1:
                problems.append({"field": name, "received": received, "allowed": "one value"})
        if problems:
            raise HTTPException(422, problems)

    return check
