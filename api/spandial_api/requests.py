"""What a rule is in a request: parameters of a query, or JSON."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import HTTPException, Request
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from spandial.abi import Mode
from spandial.decision import parse_rate
from spandial.labels import LABEL_MAX
from spandial.patterns import PATTERN_MAX, parse_operation
from spandial_api.durations import parse_duration
from spandial_api.parameters import PRINTABLE_PATTERN, RATE_PATTERN, TTL_PATTERN
from spandial_api.rules import DEFAULT_FLOOR, Rule
from spandial_api.selectors import KindName, Selector

__all__ = [
    "LABELS_MAX",
    "BatchBody",
    "ModeName",
    "Operation",
    "RenewalQuery",
    "RuleBody",
    "RuleQuery",
    "SelectorBody",
    "SelectorQuery",
    "Why",
    "label_parameters",
]

ModeName = Literal["follow", "boost", "strict"]

LABELS_MAX = 16  # in one selector
BATCH_MAX = 1000  # rules in one batch
_TARGET_MAX = 1e9


def _check_ttl(text: str) -> str:
    parse_duration(text)
    return text


def _check_rate(text: str) -> str:
    parse_rate(text)
    return text


def _check_operation(text: str) -> str:
    parse_operation(text)
    return text


Glob = Annotated[str, Field(min_length=1, max_length=LABEL_MAX)]
Ttl = Annotated[str, Field(json_schema_extra={"pattern": TTL_PATTERN}), AfterValidator(_check_ttl)]
Rate = Annotated[str, Field(json_schema_extra={"pattern": RATE_PATTERN}), AfterValidator(_check_rate)]
Operation = Annotated[
    str,
    Field(min_length=1, max_length=PATTERN_MAX, json_schema_extra={"pattern": PRINTABLE_PATTERN}),
    AfterValidator(_check_operation),
]
Why = Annotated[str, Field(max_length=1000, examples=["release 4.2"])]


class SelectorQuery(BaseModel):
    """What a rule applies to; without any field, the node's default."""

    service: Glob | None = Field(None, description="glob", examples=["checkout"])
    env: Glob | None = Field(None, description="glob", examples=["gray"])
    version: Glob | None = Field(None, description="glob", examples=["v2*"])
    tenant: Glob | None = Field(None, description="glob", examples=["acme"])
    protocol: KindName | None = None
    operation: Operation | None = Field(
        None,
        description="glob: a method and a path or route, a call's full name, or a span's name",
        examples=["GET /pay*", "/pkg.Service/*"],
    )

    def selector(self, labels: tuple[tuple[str, str], ...] = ()) -> Selector:
        return Selector(self.service, self.version, self.env, self.protocol, self.operation, self.tenant, labels)


class _Rate(BaseModel):
    target: float | None = Field(
        None,
        gt=0,
        le=_TARGET_MAX,
        description="in place of a rate: kept entries per second and service on this node",
        examples=[100],
    )
    rate: Rate | None = Field(
        None, description="percentage 0-100", examples=["30", "0.1", "30%"], validate_default=True
    )
    floor: Rate = Field(f"{DEFAULT_FLOOR}", description="with a target: percentage below which no rate is steered")
    mode: ModeName = Field("follow", description="what the rate means where the caller has already decided")
    ttl: Ttl | None = Field(
        None, description="how long the rule holds; without it, until it is removed", examples=["10m", "1h30m"]
    )

    @field_validator("target")
    @classmethod
    def _of_whole_services(cls, target: float | None, others: ValidationInfo) -> float | None:
        if target is not None and others.data.get("operation") is not None:
            raise ValueError("a rate: nobody counts the entries of one operation alone, so no target can be steered to")
        return target

    @field_validator("rate")
    @classmethod
    def _one_of_rate_and_target(cls, rate: object, others: ValidationInfo) -> object:
        if rate is None and others.data.get("target", 0) is None:
            raise ValueError("a rate, such as 30; or target=100 in its place")
        if rate is not None and others.data.get("target") is not None:
            raise ValueError("either a rate or a target, not both")
        return rate

    def rule_of(self, selector: Selector, now: float) -> Rule:
        return Rule(
            selector,
            None if self.rate is None else parse_rate(self.rate),
            Mode[self.mode.upper()],
            expires=None if self.ttl is None else now + parse_duration(self.ttl),
            target=self.target,
            floor=DEFAULT_FLOOR if self.target is None else parse_rate(self.floor),
        )


class RuleQuery(_Rate, SelectorQuery):
    """A rule as it is put."""

    why: Why = Field("", description="for the audit log")


class RemovalQuery(SelectorQuery):
    """A rule that goes."""

    why: Why = Field("", description="for the audit log")


class RenewalQuery(SelectorQuery):
    """A rule, and how long it holds from now on."""

    ttl: Ttl = Field(description="how long the rule holds from now on", examples=["10m", "1h30m"])
    why: Why = Field("", description="for the audit log")


class SelectorBody(SelectorQuery):
    """What a rule applies to, in JSON."""

    model_config = ConfigDict(extra="forbid")

    labels: dict[Glob, Glob] = Field({}, max_length=LABELS_MAX, description="globs for further resource attributes")

    def whole_selector(self) -> Selector:
        return self.selector(tuple(sorted(self.labels.items())))


class RuleBody(_Rate, SelectorBody):
    """A rule in JSON."""

    rate: Rate | Annotated[float, Field(ge=0, le=100, strict=True)] | None = Field(  # type: ignore[assignment]
        None, description="percentage 0-100", examples=[30, "0.1", "30%"], validate_default=True
    )


class BatchBody(BaseModel):
    """Rules that come and go together."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "put": [
                        {"env": "gray", "rate": "100", "mode": "boost", "ttl": "10m"},
                        {"service": "checkout", "operation": "GET /health*", "rate": "0"},
                    ],
                    "remove": [],
                    "why": "release 4.2",
                }
            ],
            "anyOf": [
                {"properties": {"put": {"minItems": 1}}, "required": ["put"]},
                {"properties": {"remove": {"minItems": 1}}, "required": ["remove"]},
            ],
        },
    )

    put: list[RuleBody] = Field([], max_length=BATCH_MAX, description="made, or replaced")
    remove: list[SelectorBody] = Field([], max_length=BATCH_MAX, description="rules of exactly these selectors")
    why: Why = Field("", description="for the audit log")

    @model_validator(mode="after")
    def _each_rule_once(self) -> BatchBody:
        selectors = [body.whole_selector() for body in (*self.put, *self.remove)]
        if not selectors:
            raise ValueError("a batch puts or removes one rule at least")
        if len(set(selectors)) < len(selectors):
            raise ValueError("a batch names each selector once")
        return self


async def label_parameters(request: Request) -> tuple[tuple[str, str], ...]:
    """A dependency: the globs for further resource attributes, from parameters such as `label.team=pay`."""
    found = {
        name.removeprefix("label."): glob for name, glob in request.query_params.items() if name.startswith("label.")
    }
    problems = [
        {"field": f"label.{name}", "received": glob, "allowed": f"a name, and a glob of 1 to {LABEL_MAX} characters"}
        for name, glob in found.items()
        if not 1 <= len(name) <= LABEL_MAX or not 1 <= len(glob) <= LABEL_MAX
    ]
    if len(found) > LABELS_MAX:
        problems.append({"field": "label.*", "received": str(len(found)), "allowed": f"at most {LABELS_MAX} labels"})
    if problems:
        raise HTTPException(422, problems)
    return tuple(sorted(found.items()))
