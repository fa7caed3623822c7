"""PUT, DELETE and GET /sampling: the rules."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Header, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import AfterValidator, BaseModel, Field, WithJsonSchema, field_validator

from spandial.abi import Mode
from spandial.decision import parse_rate
from spandial.labels import Labels
from spandial_api.auth import may_write
from spandial_api.control import ANY_REVISION, Control, Expected
from spandial_api.durations import parse_duration
from spandial_api.parameters import RATE_PATTERN, TTL_PATTERN, only
from spandial_api.problems import no_such_rule
from spandial_api.rules import Rule
from spandial_api.selectors import PROTOCOLS, KindName, Selector, selector_text

__all__ = ["conflict", "router"]

router = APIRouter(tags=["sampling"])

ModeName = Literal["follow", "boost", "strict"]


def _check_ttl(text: str) -> str:
    parse_duration(text)
    return text


Ttl = Annotated[str, AfterValidator(_check_ttl), WithJsonSchema({"type": "string", "pattern": TTL_PATTERN})]


class SelectorQuery(BaseModel):
    """What a rule applies to; without any field, the node's default."""

    service: str | None = Field(None, min_length=1, max_length=255, description="glob", examples=["checkout"])
    env: str | None = Field(None, min_length=1, max_length=255, description="glob", examples=["gray"])
    version: str | None = Field(None, min_length=1, max_length=255, description="glob", examples=["v2*"])
    protocol: KindName | None = None

    def selector(self) -> Selector:
        return Selector(self.service, self.version, self.env, self.protocol)


class RuleQuery(SelectorQuery):
    """A rule as it is put."""

    rate: str = Field(
        description="percentage 0-100", examples=["30", "0.1", "30%"], json_schema_extra={"pattern": RATE_PATTERN}
    )
    mode: ModeName = Field("follow", description="what the rate means where the caller has already decided")

    ttl: Ttl | None = Field(
        None, description="how long the rule holds; without it, until it is removed", examples=["10m", "1h30m"]
    )

    @field_validator("rate")
    @classmethod
    def _check_rate(cls, text: str) -> str:
        parse_rate(text)
        return text

    def rule(self, now: float) -> Rule:
        expires = None if self.ttl is None else now + parse_duration(self.ttl)
        return Rule(self.selector(), parse_rate(self.rate), Mode[self.mode.upper()], expires=expires)


class RenewalQuery(SelectorQuery):
    """A rule, and how long it holds from now on."""

    ttl: Ttl = Field(description="how long the rule holds from now on", examples=["10m", "1h30m"])


_SELECTOR = tuple(SelectorQuery.model_fields)
_RULE = tuple(RuleQuery.model_fields)
_RENEWAL = tuple(RenewalQuery.model_fields)


class RuleState(BaseModel):
    """A rule in force."""

    selector: str = Field(examples=["service=checkout env=gray"])
    service: str | None
    env: str | None
    version: str | None
    protocol: str | None
    rate: float
    mode: ModeName
    revision: int
    expires: float | None = Field(description="when it ends by itself, in Unix time in seconds; null: it does not")
    reached: int = Field(description="targets that have this rule's rate for at least one kind of entry")


class Rules(BaseModel):
    """All rules, the most specific first."""

    revision: int
    rules: list[RuleState]


class Removed(BaseModel):
    """What a DELETE did."""

    removed: str
    revision: int


class ProcessQuery(BaseModel):
    """The labels of a process, which need not be running."""

    service: str = Field("", max_length=255, examples=["checkout"])
    env: str = Field("", max_length=255, examples=["gray"])
    version: str = Field("", max_length=255, examples=["v2"])


class RuleVerdict(BaseModel):
    """What one rule is to a process."""

    selector: str = Field(examples=["service=checkout env=gray"])
    rate: float
    mode: ModeName
    wins: list[KindName] = Field(description="the kinds of entry whose rate it sets")
    why: str = Field(
        description="why it sets no other's, or none at all",
        examples=["env is 'stable', which 'gray' does not match", "more specific: service=checkout env=gray"],
    )


class RuleExplanation(BaseModel):
    """Which rules win for a process, and why the others do not."""

    service: str
    version: str
    env: str
    default: list[KindName] = Field(description="kinds of entry that no rule is for: the process's own default holds")
    rules: list[RuleVerdict] = Field(description="all rules, the most specific first")


def _state(rule: Rule, reached: int) -> RuleState:
    selector = rule.selector
    return RuleState(
        selector=selector_text(selector),
        service=selector.service,
        env=selector.env,
        version=selector.version,
        protocol=selector.protocol,
        rate=rule.rate,
        mode=_mode_name(rule.mode),
        revision=rule.revision,
        expires=rule.expires,
        reached=reached,
    )


def _mode_name(mode: Mode) -> ModeName:
    names: dict[Mode, ModeName] = {Mode.FOLLOW: "follow", Mode.BOOST: "boost", Mode.STRICT: "strict"}
    return names[mode]


def _no_rule(query: SelectorQuery) -> HTTPException:
    return HTTPException(404, f"there is no rule for {selector_text(query.selector())}; GET /sampling lists them")


def _control(request: Request) -> Control:
    control: Control = request.app.state.control
    return control


def _expected(
    if_match: Annotated[
        str | None,
        Header(
            description="change nothing (412) unless this is the rules' ETag, which is their revision",
            examples=["*"],
            json_schema_extra={"pattern": r'^(\*|"[0-9]{1,18}"(, "[0-9]{1,18}"){0,9})$'},
        ),
    ] = None,
) -> Expected:
    """RFC 9110, section 13.1.1."""
    if if_match is None or if_match.strip() == "*":
        return ANY_REVISION
    tags = {tag.strip() for tag in if_match.split(",")}
    return lambda revision: _etag(revision) in tags


def _etag(revision: int) -> str:
    return f'"{revision}"'


@router.put("/sampling", dependencies=[Depends(may_write), Depends(only(*_RULE))])
@router.post("/sampling", dependencies=[Depends(may_write), Depends(only(*_RULE))])
async def put_rule(
    request: Request,
    response: Response,
    query: Annotated[RuleQuery, Query()],
    expected: Annotated[Expected, Depends(_expected)],
) -> RuleState:
    """Turn the dial: make or replace the rule of this selector. When this is answered, every reader has it. With a ttl
    the rule ends by itself, on time also where the agent was down at that moment."""
    control, bound = _control(request), request.app.state.max_rate_without_ttl
    rule = query.rule(control.now())
    if rule.expires is None and rule.rate > bound:
        allowed = f"a rate above {bound:g} % needs a ttl, such as ttl=10m (SPANDIAL_MAX_RATE_WITHOUT_TTL)"
        raise HTTPException(422, [{"field": "ttl", "received": None, "allowed": allowed}])
    state = _state(*await control.put(rule, expected))
    response.headers["ETag"] = _etag(state.revision)
    return state


@router.put("/sampling/renew", responses=no_such_rule, dependencies=[Depends(may_write), Depends(only(*_RENEWAL))])
@router.post("/sampling/renew", responses=no_such_rule, dependencies=[Depends(may_write), Depends(only(*_RENEWAL))])
async def renew_rule(
    request: Request,
    response: Response,
    query: Annotated[RenewalQuery, Query()],
    expected: Annotated[Expected, Depends(_expected)],
) -> RuleState:
    """Have the rule of exactly this selector hold for so long from now on."""
    try:
        state = _state(*await _control(request).renew(query.selector(), parse_duration(query.ttl), expected))
    except KeyError:
        raise _no_rule(query) from None
    response.headers["ETag"] = _etag(state.revision)
    return state


@router.delete("/sampling", responses=no_such_rule, dependencies=[Depends(may_write), Depends(only(*_SELECTOR))])
async def delete_rule(
    request: Request,
    response: Response,
    query: Annotated[SelectorQuery, Query()],
    expected: Annotated[Expected, Depends(_expected)],
) -> Removed:
    """Remove the rule of exactly this selector."""
    selector = query.selector()
    try:
        revision = await _control(request).remove(selector, expected)
    except KeyError:
        raise _no_rule(query) from None
    response.headers["ETag"] = _etag(revision)
    return Removed(removed=selector_text(selector), revision=revision)


@router.get("/sampling", dependencies=[Depends(only())])
async def get_rules(request: Request, response: Response) -> Rules:
    """The rules, the ones that win first, and how many targets each reaches. The ETag is their revision."""
    rules = _rules(_control(request))
    response.headers["ETag"] = _etag(rules.revision)
    return rules


@router.get("/sampling/explain", dependencies=[Depends(only(*ProcessQuery.model_fields))])
async def explain_rules(request: Request, query: Annotated[ProcessQuery, Query()]) -> RuleExplanation:
    """Which rule wins for a process with these labels, for each kind of entry, and why the others lose."""
    labels = Labels(query.service, query.version, query.env)
    findings = _control(request).book.explain(labels)
    won = {kind for finding in findings for kind in finding.wins}
    return RuleExplanation(
        **labels._asdict(),
        default=[kind for kind in PROTOCOLS if kind not in won],
        rules=[
            RuleVerdict(
                selector=selector_text(finding.rule.selector),
                rate=finding.rule.rate,
                mode=_mode_name(finding.rule.mode),
                wins=list(finding.wins),
                why=finding.why,
            )
            for finding in findings
        ],
    )


async def conflict(request: Request, _error: Exception) -> JSONResponse:
    """412 with the rules as they are."""
    current = _rules(_control(request))
    detail = f"the rules have changed: they are at revision {current.revision}, which If-Match does not name"
    headers = {"ETag": _etag(current.revision)}
    return JSONResponse({"detail": detail, "current": current.model_dump()}, status_code=412, headers=headers)


def _rules(control: Control) -> Rules:
    reached = control.reached()
    return Rules(revision=control.book.revision, rules=[_state(rule, reached[rule.selector]) for rule in control.book])
