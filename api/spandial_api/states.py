"""What a rule is in an answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pydantic import BaseModel, Field

from spandial.abi import Mode
from spandial_api.audit import Action, Entry
from spandial_api.requests import ModeName
from spandial_api.rules import Rule
from spandial_api.selectors import KindName, Selector, selector_text

__all__ = ["AuditEntry", "AuditLog", "Batch", "Removed", "RuleState", "Rules", "SelectorState", "mode_name"]


class SelectorState(BaseModel):
    """A selector, written and by its fields."""

    selector: str = Field(examples=["service=checkout env=gray"])
    service: str | None
    env: str | None
    version: str | None
    tenant: str | None
    labels: dict[str, str] = Field(description="globs for further resource attributes")
    protocol: KindName | None
    operation: str | None

    @classmethod
    def fields_of(cls, selector: Selector) -> dict[str, object]:
        return {
            "selector": selector_text(selector),
            "service": selector.service,
            "env": selector.env,
            "version": selector.version,
            "tenant": selector.tenant,
            "labels": dict(selector.labels),
            "protocol": selector.protocol,
            "operation": selector.operation,
        }


class RuleSays(BaseModel):
    """A rule without its selector."""

    rate: float | None = Field(description="percentage 0-100; null for a rule with a target")
    target: float | None = Field(description="kept entries per second and service, to which the rate is steered")
    floor: float | None = Field(description="percentage below which it is not steered; null without a target")
    mode: ModeName
    revision: int
    expires: float | None = Field(description="when it ends by itself, in Unix time in seconds; null: it does not")

    @classmethod
    def of(cls, rule: Rule) -> RuleSays:
        return cls.model_validate(cls.says(rule))

    @staticmethod
    def says(rule: Rule) -> dict[str, object]:
        return {
            "rate": rule.rate,
            "target": rule.target,
            "floor": None if rule.target is None else rule.floor,
            "mode": mode_name(rule.mode),
            "revision": rule.revision,
            "expires": rule.expires,
        }


class RuleState(RuleSays, SelectorState):
    """A rule in force."""

    in_kernel: bool = Field(
        description="false: only hooks can obey it, since its operation is no path, or has a wildcard before its end"
    )
    reached: int = Field(description="targets that have this rule's rate for at least one kind of entry")

    @classmethod
    def in_force(cls, rule: Rule, reached: int) -> RuleState:
        pattern = rule.selector.pattern
        return cls.model_validate(
            {
                **cls.fields_of(rule.selector),
                **cls.says(rule),
                "in_kernel": pattern is None or pattern.prefix is not None or pattern.path == "*",
                "reached": reached,
            }
        )


class Rules(BaseModel):
    """All rules, the ones that win first."""

    revision: int
    rules: list[RuleState]

    @classmethod
    def of(cls, rules: Iterable[Rule], revision: int, reached: Mapping[Selector, int]) -> Rules:
        return cls(revision=revision, rules=[RuleState.in_force(rule, reached[rule.selector]) for rule in rules])


class Removed(BaseModel):
    """What a DELETE did."""

    removed: str
    revision: int


class Batch(BaseModel):
    """What a batch did."""

    revision: int
    rules: list[RuleState] = Field(description="those that were put")
    removed: list[str]


class RuleChange(SelectorState):
    """What a revision made of one rule; null before it was put, and after it was removed."""

    before: RuleSays | None
    after: RuleSays | None


class LimitState(BaseModel):
    """What a revision made of the node's budget, or of a tenant's quota: kept entries a second; null: the default."""

    tenant: str | None = Field(description="null: the budget")
    before: float | None
    after: float | None


class AuditEntry(BaseModel):
    """One revision."""

    revision: int
    time: float = Field(description="Unix time in seconds")
    who: str = Field(examples=["uid 0", "token checkout-pipeline", "spandial"])
    action: Action
    why: str
    changes: list[RuleChange]
    limit: LimitState | None = Field(description="the budget or quota that was changed; null where rules were")

    @classmethod
    def of(cls, entry: Entry) -> AuditEntry:
        changes = [
            {
                **RuleChange.fields_of(selector),
                "before": None if before is None else RuleSays.says(before),
                "after": None if after is None else RuleSays.says(after),
            }
            for selector, before, after in entry.changes
        ]
        limit = None if entry.limit is None else entry.limit._asdict()
        return cls.model_validate({**vars(entry), "changes": changes, "limit": limit})


class AuditLog(BaseModel):
    """The latest revisions, latest first."""

    entries: list[AuditEntry]


def mode_name(mode: Mode) -> ModeName:
    names: dict[Mode, ModeName] = {Mode.FOLLOW: "follow", Mode.BOOST: "boost", Mode.STRICT: "strict"}
    return names[mode]
