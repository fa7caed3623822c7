"""GET /sampling/explain: which rules win for a process, and why the others lose."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, Field

from spandial.labels import LABEL_MAX, Labels
from spandial_api.control import Control
from spandial_api.parameters import only
from spandial_api.requests import ModeName, Operation, label_parameters
from spandial_api.selectors import PROTOCOLS, KindName, selector_text
from spandial_api.states import mode_name

router = APIRouter(tags=["sampling"])

Label = Annotated[str, Field(max_length=LABEL_MAX)]


class ProcessQuery(BaseModel):
    """The labels of a process, which need not be running."""

    service: Label = Field("", examples=["checkout"])
    env: Label = Field("", examples=["gray"])
    version: Label = Field("", examples=["v2"])
    tenant: Label = Field("", examples=["acme"])
    operation: Operation | None = Field(
        None, description="one operation; without it, of all that no rule names", examples=["GET /pay"]
    )


class RuleVerdict(BaseModel):
    """What one rule is to a process."""

    selector: str = Field(examples=["service=checkout env=gray"])
    rate: float | None = Field(description="null for a rule with a target")
    target: float | None
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
    tenant: str
    labels: dict[str, str]
    operation: str | None
    default: list[KindName] = Field(description="kinds of entry that no rule is for: the process's own default holds")
    rules: list[RuleVerdict] = Field(description="all rules, the ones that win first")


@router.get("/sampling/explain", dependencies=[Depends(only(*ProcessQuery.model_fields, "label.*"))])
async def explain_rules(
    request: Request,
    query: Annotated[ProcessQuery, Query()],
    others: Annotated[tuple[tuple[str, str], ...], Depends(label_parameters)],
) -> RuleExplanation:
    """Which rule wins for a process with these labels, for each kind of entry, and why the others lose. Further
    resource attributes are parameters such as `label.team=pay`."""
    control: Control = request.app.state.control
    labels = Labels(query.service, query.version, query.env, query.tenant, others)
    findings = control.book.explain(labels, query.operation or "")
    won = {
        kind for finding in findings if query.operation or not finding.rule.selector.operation for kind in finding.wins
    }
    return RuleExplanation(
        **labels.main,
        tenant=labels.tenant,
        labels=dict(labels.others),
        operation=query.operation,
        default=[kind for kind in PROTOCOLS if kind not in won],
        rules=[
            RuleVerdict(
                selector=selector_text(finding.rule.selector),
                rate=finding.rule.rate,
                target=finding.rule.target,
                mode=mode_name(finding.rule.mode),
                wins=list(finding.wins),
                why=finding.why,
            )
            for finding in findings
        ],
    )
