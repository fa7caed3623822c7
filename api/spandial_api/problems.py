"""What the interface answers where it does not do what it was asked, and how its description says so, in one place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.dependencies.models import Dependant
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field

from spandial.labels import LABEL_MAX
from spandial_api.auth import may_admin, may_write
from spandial_api.requests import LABELS_MAX, label_parameters

__all__ = ["Complaint", "Problem", "Problems", "describe", "no_such_revision", "no_such_rule", "too_many", "ttl_of_on"]


class Problem(BaseModel):
    """What is wrong with one parameter, or with one member of a body."""

    field: str = Field(examples=["rate"])
    received: Any = Field(description="null where it is missing")
    allowed: str = Field(examples=["Field required"])


class Problems(BaseModel):
    """Everything that is wrong with a request. Nothing was changed."""

    detail: list[Problem]


class Complaint(BaseModel):
    """Why a request was not done, in a sentence. Nothing was changed."""

    detail: str


class Conflict(Complaint):
    """The rules are not those that the change was meant for; here they are. Nothing was changed."""

    current: dict[str, Any] = Field(description="as `GET /sampling` answers")


Answers = dict[int | str, dict[str, Any]]

no_such_rule: Answers = {404: {"model": Complaint, "description": "There is no such rule"}}
too_many: Answers = {409: {"model": Complaint, "description": "There are as many as there may be"}}
ttl_of_on: Answers = {409: {"model": Complaint, "description": "What is switched on has no end"}}
no_such_revision: Answers = {
    404: {"model": Complaint, "description": "The audit log has no such revision"},
    409: {
        "model": Complaint,
        "description": "A rule that it changed has been changed since, or there would be too many",
    },
}

_SCHEME = "token"
_REFERENCE = "#/components/schemas/{model}"
_OF_WRITES = {
    "401": "Over TCP a token is needed; `WWW-Authenticate` says so",
    "503": "The rules cannot be written to disk",
}

# `label.team=pay`, as many as there are: an object whose members are parameters of their own.
_LABELS: dict[str, Any] = {
    "name": "labels",
    "in": "query",
    "style": "form",
    "explode": True,
    "description": "further resource attributes, each a parameter such as `label.team=pay`",
    "schema": {
        "type": "object",
        "propertyNames": {"pattern": r"^label\.[A-Za-z][A-Za-z0-9._-]{0,99}$"},
        "additionalProperties": {"type": "string", "minLength": 1, "maxLength": LABEL_MAX},
        "maxProperties": LABELS_MAX,
    },
    "example": {"label.team": "pay"},
}


def describe(app: FastAPI, routers: Sequence[APIRouter]) -> None:
    """Have the application's description say more of what these routers answer, and a 405 all that a path allows."""
    routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = get_openapi(
                title=app.title, version=app.version, description=app.description, routes=app.routes
            )
            _complete(app.openapi_schema, routes)
        return app.openapi_schema

    async def not_allowed(request: Request, _error: Exception) -> JSONResponse:
        # Starlette names the methods of one route; RFC 9110, section 15.5.6, wants those of the path.
        path = request.url.path
        allowed = ", ".join(
            sorted({m for route in routes if route.path_regex.match(path) for m in route.methods or ()})
        )
        detail = f"{request.method} does nothing here; {path} takes {allowed or 'GET'}"
        return JSONResponse({"detail": detail}, status_code=405, headers={"Allow": allowed or "GET"})

    app.openapi = openapi  # type: ignore[method-assign]
    app.add_exception_handler(405, not_allowed)


def _complete(schema: dict[str, Any], routes: Sequence[APIRoute]) -> None:
    """What FastAPI cannot know: which operations write, and that a parameter is absent or a string, but never null."""
    components = schema["components"]
    for model in (Problem, Problems, Complaint, Conflict):
        definition = model.model_json_schema(ref_template=_REFERENCE)
        definition.pop("$defs", None)
        components["schemas"][model.__name__] = definition
    components["securitySchemes"] = {
        _SCHEME: {"type": "http", "scheme": "bearer", "description": "Over TCP only: the Unix socket needs none."}
    }
    for route in routes:
        writes = any(call in (may_write, may_admin) for call in _calls(route.dependant))
        for method in (route.methods or ()) if route.include_in_schema else ():
            operation = schema["paths"][route.path_format][method.lower()]
            answers = operation["responses"]
            answers["422"] = _answer("Something in the request is wrong", Problems)
            if "requestBody" in operation:
                answers["400"] = _answer("The body cannot be decoded", Complaint)
                answers["413"] = _answer("The body is too long", Complaint)
            for status, answer in answers.items():
                if status >= "400":  # FastAPI gives it the type of the route's own answer, such as a stream of events
                    [content] = answer.get("content", {}).values() or _answer("", Complaint)["content"].values()
                    answer["content"] = {"application/json": content}
            parameters = operation.get("parameters", [])
            if any(call is label_parameters for call in _calls(route.dependant)):
                parameters.append(_LABELS)
            for parameter in parameters:
                parameter["schema"] = _without_null(parameter["schema"])
            if writes:
                operation["security"] = [{_SCHEME: []}]
                for status, description in _OF_WRITES.items():
                    answers.setdefault(status, _answer(description, Complaint))
            if method == "DELETE":
                answers.setdefault("404", _answer("There is nothing to remove", Complaint))
            if any(parameter["name"] == "if-match" for parameter in parameters):
                conflict = _answer("The rules are not those that If-Match names", Conflict)
                answers.setdefault("412", conflict)


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    left = [choice for choice in schema.get("anyOf", []) if choice != {"type": "null"}]
    return schema if len(left) != 1 else {key: schema[key] for key in schema if key != "anyOf"} | left[0]


def _calls(dependant: Dependant) -> Iterator[Any]:
    for dependency in dependant.dependencies:
        yield dependency.call
        yield from _calls(dependency)


def _answer(description: str, model: type[BaseModel]) -> dict[str, Any]:
    reference = {"$ref": _REFERENCE.format(model=model.__name__)}
    return {"description": description, "content": {"application/json": {"schema": reference}}}
