"""POST /GetSamplingRules and /SamplingTargets: AWS X-Ray's centralized sampling, as its daemon serves it."""

from __future__ import annotations

import math
from typing import Annotated, TypeVar

from fastapi import APIRouter, Depends, HTTPException, Request, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.alias_generators import to_pascal
from starlette.requests import ClientDisconnect

from spandial_api.body_limit import BODY_MAX
from spandial_api.parameters import connection_of, uid_of
from spandial_api.peers import peer_of
from spandial_api.remote import RemoteSampling
from spandial_api.slices import Slices
from spandial_api.xray import RULES_MAX, XRayRule

router = APIRouter(tags=["SDKs without the hook"])

_FEW = 32  # rules or documents: less than a slice of the event loop's time
_SHORT = 16 << 10  # bytes: the same
_COUNT_MAX = (1 << 53) - 1


class _Shape(BaseModel):
    model_config = ConfigDict(alias_generator=to_pascal, populate_by_name=True)


class SamplingRule(_Shape):
    """One rule; `*` and `?` are wildcards."""

    rule_name: str = Field(examples=["service=checkout"])
    rule_arn: str = Field("", alias="RuleARN")
    priority: int = Field(ge=1, le=10_000, description="of the rules that match, the least wins", examples=[1])
    fixed_rate: float = Field(ge=0, le=1, examples=[0.3])
    reservoir_size: int = Field(ge=0, examples=[0])
    service_name: str = Field(examples=["checkout"])
    service_type: str = "*"
    host: str = "*"
    http_method: str = Field("*", alias="HTTPMethod")
    url_path: str = Field("*", alias="URLPath", examples=["/pay*"])
    resource_arn: str = Field("*", alias="ResourceARN")
    attributes: dict[str, str] = {}
    version: int = 1


class SamplingRuleRecord(_Shape):
    """A rule, and since when."""

    sampling_rule: SamplingRule
    created_at: float = Field(0.0, description="Unix time in seconds; not known")
    modified_at: float = Field(0.0, description="the same")


class SamplingRules(_Shape):
    """All rules, on one page."""

    sampling_rule_records: list[SamplingRuleRecord]
    next_token: None = None


def _number(value: object) -> object:
    if isinstance(value, (bool, str)):
        raise ValueError("a number")
    return value


_Count = Annotated[int, Field(ge=0, le=_COUNT_MAX), BeforeValidator(_number)]
_Time = Annotated[float, Field(allow_inf_nan=False, description="Unix time in seconds"), BeforeValidator(_number)]


class StatisticsDocument(_Shape):
    """What one client did under one rule since it asked before."""

    rule_name: str = Field(min_length=1, max_length=255, examples=["service=checkout"])
    client_id: str = Field(alias="ClientID", min_length=1, max_length=64, examples=["6d1cf83a2f1e4b5c9d0e7f3a"])
    timestamp: _Time = Field(examples=[1700000000])
    request_count: _Count = Field(examples=[110])
    # Not needed here, and the ADOT SDK for Python calls it SampleCount.
    sampled_count: _Count = Field(0, examples=[20])
    borrow_count: _Count = Field(0, examples=[0])


class TargetsRequest(_Shape):
    """What one client did under its rules."""

    sampling_statistics_documents: list[StatisticsDocument] = Field(max_length=RULES_MAX)


class TargetDocument(_Shape):
    """What one client is to do under one rule until it asks again."""

    rule_name: str = Field(examples=["service=checkout"])
    fixed_rate: float = Field(ge=0, le=1, examples=[0.3])
    reservoir_quota: int = Field(ge=0, description="requests to keep each second, whatever the rate")
    reservoir_quota_ttl: float = Field(alias="ReservoirQuotaTTL", description="Unix time in seconds")
    interval: int = Field(ge=1, description="seconds until it is to ask again", examples=[10])


class Unprocessed(_Shape):
    """A document that nothing could be said to."""

    rule_name: str
    error_code: str = Field(examples=["404"])
    message: str


class Targets(_Shape):
    """What one client is to do; it asks for the rules again if they are newer than those it has."""

    sampling_target_documents: list[TargetDocument]
    last_rule_modification: float = Field(description="Unix time in seconds, rounded up: clients may know no fractions")
    unprocessed_statistics: list[Unprocessed]


def _no_page(token: object) -> object:
    if token is not None:
        raise ValueError("null: all rules are on one page")
    return token


class RulesRequest(_Shape):
    """There is nothing to choose."""

    next_token: Annotated[None, BeforeValidator(_no_page)] = None


_Request = TypeVar("_Request", bound=BaseModel)

_RULES_REQUEST = TypeAdapter(RulesRequest)
_TARGETS_REQUEST = TypeAdapter(TargetsRequest)


async def _body(request: Request) -> bytes:
    try:
        return await request.body()
    except ClientDisconnect:  # nobody reads the answer, and nobody is to make the agent log how it came to it
        raise HTTPException(400, "the connection ended before the body did") from None


def _problems(error: ValidationError) -> list[dict[str, object]]:
    return [
        {
            "field": ".".join(map(str, item["loc"])) or "body",
            "received": _shown(item["input"]),
            "allowed": item["msg"].removeprefix("Value error, "),
        }
        for item in error.errors(include_url=False, include_context=False)[:20]
    ]


def _shown(value: object) -> object:
    """A short value as it is, anything else by its type."""
    if value is None or isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return value[:100] if isinstance(value, str) else f"a {type(value).__name__}"


async def _rules_request(body: Annotated[bytes, Depends(_body)]) -> RulesRequest:
    return _validated(_RULES_REQUEST, body or b"{}")


async def _targets_request(request: Request, body: Annotated[bytes, Depends(_body)]) -> TargetsRequest:
    async with _slices(request).turn(len(body) > _SHORT):
        return _validated(_TARGETS_REQUEST, body)


def _slices(request: Request) -> Slices:
    remote: RemoteSampling = request.app.state.remote
    return remote.slices


def _validated(adapter: TypeAdapter[_Request], body: bytes) -> _Request:
    """Raises HTTPException 422."""
    try:
        return adapter.validate_json(body)
    except ValidationError as error:
        raise HTTPException(422, _problems(error)) from None


def _documented(model: type[BaseModel], *, required: bool, example: object) -> dict[str, object]:
    """The request body: SDKs do not always name its content type, so it is read as bytes."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})
    for each in schema["properties"].values():
        if "items" in each:
            each["items"] = definitions[each["items"]["$ref"].rpartition("/")[2]]
    content = {"application/json": {"schema": schema, "example": example}}
    return {"requestBody": {"required": required, "content": content}}


_RULES_EXAMPLE = {
    "SamplingRuleRecords": [
        {
            "SamplingRule": {
                "RuleName": "service=checkout",
                "RuleARN": "",
                "Priority": 1,
                "FixedRate": 0.3,
                "ReservoirSize": 0,
                "ServiceName": "checkout",
                "ServiceType": "*",
                "Host": "*",
                "HTTPMethod": "*",
                "URLPath": "*",
                "ResourceARN": "*",
                "Attributes": {},
                "Version": 1,
            },
            "CreatedAt": 0.0,
            "ModifiedAt": 0.0,
        }
    ],
    "NextToken": None,
}
_STATISTICS_EXAMPLE = {
    "SamplingStatisticsDocuments": [
        {
            "RuleName": "service=checkout",
            "ClientID": "6d1cf83a2f1e4b5c9d0e7f3a",
            "Timestamp": 1700000000,
            "RequestCount": 110,
            "SampledCount": 30,
            "BorrowCount": 0,
        }
    ]
}
_TARGETS_EXAMPLE = {
    "SamplingTargetDocuments": [
        {
            "RuleName": "service=checkout",
            "FixedRate": 0.3,
            "ReservoirQuota": 0,
            "ReservoirQuotaTTL": 1700000030.0,
            "Interval": 10,
        }
    ],
    "LastRuleModification": 1700000000.0,
    "UnprocessedStatistics": [],
}


def _responses(example: object) -> dict[int | str, dict[str, object]]:
    return {
        200: {"content": {"application/json": {"example": example}}},
        413: {"description": f"a body of more than {BODY_MAX} bytes"},
        422: {"description": "the fields, what was received and what is allowed"},
    }


@router.post(
    "/GetSamplingRules",
    openapi_extra=_documented(RulesRequest, required=False, example={}),
    responses=_responses(_RULES_EXAMPLE),
    response_model=SamplingRules,
)
async def get_sampling_rules(request: Request, _: Annotated[RulesRequest, Depends(_rules_request)]) -> Response:
    """The rules as AWS X-Ray has them. Nothing is changed, and no token is needed."""
    remote: RemoteSampling = request.app.state.remote
    rules, _modified = await remote.xray(connection_of(request), uid_of(request))
    records = []
    async with remote.slices.turn(len(rules) > _FEW) as rest:
        for number, rule in enumerate(rules.values(), 1):
            if not number % _FEW:
                await rest()
            records.append(SamplingRuleRecord(sampling_rule=_rule(rule)))
        return _answer(SamplingRules(sampling_rule_records=records))


@router.post(
    "/SamplingTargets",
    openapi_extra=_documented(TargetsRequest, required=True, example=_STATISTICS_EXAMPLE),
    responses=_responses(_TARGETS_EXAMPLE),
    response_model=Targets,
)
async def get_sampling_targets(
    request: Request, asked: Annotated[TargetsRequest, Depends(_targets_request)]
) -> Response:
    """What a client of AWS X-Ray is to do under each of its rules. No rule is changed, and no token is needed."""
    remote: RemoteSampling = request.app.state.remote
    rules, modified = await remote.xray(connection_of(request), uid_of(request))
    now = request.app.state.control.now()
    documents = asked.sampling_statistics_documents
    peer = peer_of(request.scope).name
    client = documents[0].client_id if documents else ""  # a request is of one client
    targets, unprocessed = [], []
    async with remote.slices.turn(len(documents) > _FEW) as rest:
        for number, document in enumerate(documents, 1):
            if not number % _FEW:
                await rest()
            rule = rules.get(document.rule_name)
            if rule is None:
                unprocessed.append(Unprocessed(rule_name=document.rule_name, error_code="404", message="no such rule"))
                continue
            targets.append(
                TargetDocument(
                    rule_name=rule.name,
                    fixed_rate=rule.rate,
                    reservoir_quota=remote.reservoirs.quota(rule, client, document.request_count, now, peer),
                    reservoir_quota_ttl=now + remote.quota_ttl_s,
                    interval=remote.interval_s,
                )
            )
        answer = Targets(
            sampling_target_documents=targets,
            last_rule_modification=float(math.ceil(modified)),
            unprocessed_statistics=unprocessed,
        )
        return _answer(answer)


def _answer(answer: BaseModel) -> Response:
    """As it is: it has been validated when it was made."""
    return Response(answer.model_dump_json(by_alias=True), media_type="application/json")


def _rule(rule: XRayRule) -> SamplingRule:
    return SamplingRule(
        rule_name=rule.name,
        priority=rule.priority,
        fixed_rate=rule.rate,
        reservoir_size=rule.reservoir,
        service_name=rule.service,
        http_method=rule.method,
        url_path=rule.path,
        attributes=dict(rule.attributes),
    )
