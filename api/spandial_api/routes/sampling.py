"""/sampling: the rules, made, replaced, renewed, removed, and changed together."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse

from spandial_api.auth import KnownFirst, Principal, may_write
from spandial_api.control import RULES_MAX, Author, Control, Expected
from spandial_api.durations import parse_duration
from spandial_api.parameters import only
from spandial_api.preconditions import etag, expected_revision
from spandial_api.problems import no_such_rule, too_many
from spandial_api.requests import BatchBody, RemovalQuery, RenewalQuery, RuleQuery, label_parameters
from spandial_api.rules import Rule
from spandial_api.selectors import Selector, selector_text
from spandial_api.shared_answer import SharedAnswer
from spandial_api.states import Batch, Removed, Rules, RuleState

__all__ = ["conflict", "full", "router", "rules_of"]

router = APIRouter(tags=["sampling"], route_class=KnownFirst)

Writer = Annotated[Principal, Depends(may_write)]
LabelGlobs = Annotated[tuple[tuple[str, str], ...], Depends(label_parameters)]
IfMatch = Annotated[Expected, Depends(expected_revision)]

_LABELS = "label.*"
_WRITES = Depends(may_write)  # first: who may not write is told so, and nothing else
_RULE = Depends(only(*RuleQuery.model_fields, _LABELS))
_RENEWAL = Depends(only(*RenewalQuery.model_fields, _LABELS))
_REMOVAL = Depends(only(*RemovalQuery.model_fields, _LABELS))


def _no_rule(selector: Selector) -> HTTPException:
    return HTTPException(404, f"there is no rule for {selector_text(selector)}; GET /sampling lists them")


def _control(request: Request) -> Control:
    control: Control = request.app.state.control
    return control


def _check_end(request: Request, rule: Rule, field: str = "ttl") -> None:
    """Raises HTTPException 422 for a rule that must say when it ends, and does not."""
    bound = request.app.state.max_rate_without_ttl
    if rule.expires is None and rule.rate is not None and rule.rate > bound:
        allowed = f"a rate above {bound:g} % needs a ttl, such as ttl=10m (SPANDIAL_MAX_RATE_WITHOUT_TTL)"
        raise HTTPException(422, [{"field": field, "received": None, "allowed": allowed}])


@router.put("/sampling", responses=too_many, dependencies=[_WRITES, _RULE])
@router.post("/sampling", responses=too_many, dependencies=[_WRITES, _RULE])
async def put_rule(
    request: Request,
    response: Response,
    writer: Writer,
    query: Annotated[RuleQuery, Query()],
    labels: LabelGlobs,
    expected: IfMatch,
) -> RuleState:
    """Turn the dial: make or replace the rule of this selector. When this is answered, every reader has it. With a ttl
    the rule ends by itself, on time also where the agent was down at that moment. Parameters such as `label.team=pay`
    select by further resource attributes. Repeated without a ttl, it changes nothing."""
    control, selector = _control(request), query.selector(labels)
    writer.check(selector)
    rule = query.rule_of(selector, control.now())
    _check_end(request, rule)
    stored = await control.put(rule, Author(writer.name, query.why), expected)
    response.headers["ETag"] = etag(stored.revision)
    return RuleState.in_force(stored.rule, stored.reached)


@router.put("/sampling/renew", responses=no_such_rule, dependencies=[_WRITES, _RENEWAL])
@router.post("/sampling/renew", responses=no_such_rule, dependencies=[_WRITES, _RENEWAL])
async def renew_rule(
    request: Request,
    response: Response,
    writer: Writer,
    query: Annotated[RenewalQuery, Query()],
    labels: LabelGlobs,
    expected: IfMatch,
) -> RuleState:
    """Have the rule of exactly this selector hold for so long from now on."""
    control, selector = _control(request), query.selector(labels)
    writer.check(selector)
    try:
        renewed = await control.renew(selector, parse_duration(query.ttl), Author(writer.name, query.why), expected)
    except KeyError:
        raise _no_rule(selector) from None
    response.headers["ETag"] = etag(renewed.revision)
    return RuleState.in_force(renewed.rule, renewed.reached)


@router.delete("/sampling", responses=no_such_rule, dependencies=[_WRITES, _REMOVAL])
async def delete_rule(
    request: Request,
    response: Response,
    writer: Writer,
    query: Annotated[RemovalQuery, Query()],
    labels: LabelGlobs,
    expected: IfMatch,
) -> Removed:
    """Remove the rule of exactly this selector."""
    selector = query.selector(labels)
    writer.check(selector)
    try:
        revision = await _control(request).remove(selector, Author(writer.name, query.why), expected)
    except KeyError:
        raise _no_rule(selector) from None
    response.headers["ETag"] = etag(revision)
    return Removed(removed=selector_text(selector), revision=revision)


@router.post("/sampling/batch", responses=no_such_rule | too_many, dependencies=[_WRITES, Depends(only())])
async def change_rules(
    request: Request, response: Response, writer: Writer, body: BatchBody, expected: IfMatch
) -> Batch:
    """Put and remove rules together, under one revision: all of them, or none."""
    control = _control(request)
    put = [rule.rule_of(rule.whole_selector(), control.now()) for rule in body.put]
    removed = [rule.whole_selector() for rule in body.remove]
    for index, rule in enumerate(put):
        _check_end(request, rule, f"put.{index}.ttl")
    for selector in (*(rule.selector for rule in put), *removed):
        writer.check(selector)
    try:
        book, reached = await control.batch(put, removed, Author(writer.name, body.why), expected)
    except KeyError as error:
        raise _no_rule(error.args[0]) from None
    response.headers["ETag"] = etag(book.revision)
    return Batch(
        revision=book.revision,
        rules=[RuleState.in_force(book.rules[rule.selector], reached[rule.selector]) for rule in put],
        removed=[selector_text(selector) for selector in removed],
    )


def rules_of(control: Control) -> SharedAnswer[tuple[int, bytes]]:
    """For all who ask, with their revision."""

    async def make() -> tuple[int, bytes]:
        rules = _rules(control)
        return rules.revision, rules.model_dump_json().encode()

    return SharedAnswer(make)


@router.get("/sampling", dependencies=[Depends(only())], response_model=Rules)
async def get_rules(request: Request) -> Response:
    """The rules, the ones that win first, and how many targets each reaches. The ETag is their revision. With the
    parameter `service` it is Jaeger's remote sampling that answers: see `/api/sampling`."""
    shared: SharedAnswer[tuple[int, bytes]] = request.app.state.rules
    revision, body = await shared.get()
    return Response(body, media_type="application/json", headers={"ETag": etag(revision)})


async def conflict(request: Request, _error: Exception) -> JSONResponse:
    """412 with the rules as they are."""
    current = _rules(_control(request))
    detail = f"the rules have changed: they are at revision {current.revision}, which If-Match does not name"
    headers = {"ETag": etag(current.revision)}
    return JSONResponse({"detail": detail, "current": current.model_dump()}, status_code=412, headers=headers)


async def full(_request: Request, _error: Exception) -> JSONResponse:
    """409: there are too many rules."""
    detail = f"there may be {RULES_MAX} rules: remove some first, or give those that come and go a ttl"
    return JSONResponse({"detail": f"{detail}; nothing was changed"}, status_code=409)


def _rules(control: Control) -> Rules:
    return Rules.of(control.book, control.book.revision, control.reached())
