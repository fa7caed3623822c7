"""The rules as Jaeger's remote sampling has them. Pure.

Messages: jaeger-idl, proto/api_v2/sampling.proto, in protobuf's JSON mapping with enums as strings and nothing left out
that is zero. Consumers look at operationSampling first; it then says the default too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from fnmatch import translate
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from spandial.abi import EntryKind
from spandial.labels import Labels
from spandial_api.known import whole_per_second
from spandial_api.rules import Rule, RuleBook
from spandial_api.selectors import PROTOCOLS

__all__ = ["OperationSampling", "Strategy", "strategy_for"]

RateNow = Callable[[EntryKind], "float | None"]

# Span names of HTTP servers begin with one of them (OpenTelemetry, semantic conventions for HTTP spans).
_METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS")
# The kinds of entry a trace begins with; the first that has a rule sets the rate of a client, which knows only one.
_FIRST_KINDS = (EntryKind.HTTP, EntryKind.GRPC, EntryKind.INTERNAL)


class _Message(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True)


class Probabilistic(_Message):
    """A share of all traces."""

    sampling_rate: float = Field(ge=0, le=1, examples=[0.3])


class RateLimiting(_Message):
    """So many traces a second, in each client."""

    max_traces_per_second: int = Field(ge=0, le=(1 << 31) - 1, examples=[100])


class OperationStrategy(_Message):
    """One operation's share."""

    operation: str = Field(description="span name", examples=["GET /pay"])
    probabilistic_sampling: Probabilistic


class OperationSampling(_Message):
    """Shares by operation, and of all other operations."""

    default_sampling_probability: float = Field(ge=0, le=1)
    default_lower_bound_traces_per_second: float = Field(ge=0)
    per_operation_strategies: list[OperationStrategy]
    default_upper_bound_traces_per_second: float | None = Field(None, ge=0)


class Strategy(_Message):
    """What a client is to do."""

    strategy_type: Literal["PROBABILISTIC", "RATE_LIMITING"]
    probabilistic_sampling: Probabilistic | None = None
    rate_limiting_sampling: RateLimiting | None = None
    operation_sampling: OperationSampling | None = Field(None, description="only where there are rules by operation")

    @property
    def message(self) -> dict[str, object]:
        """The JSON object; protobuf's JSON mapping reads it too."""
        return self.model_dump(by_alias=True, exclude_none=True)


def strategy_for(book: RuleBook, labels: Labels, rate_now: RateNow, default: float) -> Strategy:
    """What the rules say to a client.

    Args:
        labels: what is known of it.
        rate_now: the percentage that its processes have at this moment, where there are any.
        default: percentage where no rule is for it.
    """
    rule = next((rule for kind in _FIRST_KINDS if (rule := book.resolve(labels, kind)) is not None), None)
    now = rate_now(next(kind for kind in _FIRST_KINDS if rule.selector.matches_kind(kind))) if rule else None
    # Steered or limited, the rate in force is not the rule's.
    percent = now if now is not None else _percent(rule) if rule else default
    target = rule.target if rule else None
    operations = _operations(book.operations(labels))
    if target is not None and not operations:
        limit = RateLimiting(max_traces_per_second=whole_per_second(target))
        return Strategy(strategy_type="RATE_LIMITING", rate_limiting_sampling=limit)
    probability = _probability(percent)
    # Where nobody measures, clients that know lower bounds (Go's) hold the target themselves, for each operation.
    shares = [each.probabilistic_sampling.sampling_rate for each in operations]
    lower_bound = target if target is not None and now is None and min(shares, default=0.0) > 0 else 0.0
    return Strategy(
        strategy_type="PROBABILISTIC",
        probabilistic_sampling=Probabilistic(sampling_rate=probability),
        operation_sampling=OperationSampling(
            default_sampling_probability=probability,
            default_lower_bound_traces_per_second=lower_bound,
            per_operation_strategies=operations,
            default_upper_bound_traces_per_second=target,
        )
        if operations
        else None,
    )


def _percent(rule: Rule) -> float:
    return rule.floor if rule.rate is None else rule.rate


def _probability(percent: float) -> float:
    return round(min(max(percent, 0.0), 100.0) / 100, 12)


class _Name(NamedTuple):
    """A span name that a rule is for."""

    name: str
    method: str
    kind: EntryKind


def _operations(rules: list[Rule]) -> list[OperationStrategy]:
    """Clients compare span names, so only patterns without a wildcard say which names there are. Which rule is for a
    name, all of them decide."""
    matchers = [re.compile(translate(rule.selector.pattern.path)).match for rule in rules if rule.selector.pattern]
    found: dict[str, float] = {}
    for rule in rules:
        pattern = rule.selector.pattern
        if pattern is None or not pattern.exact:
            continue
        candidates = [other for other, matches in zip(rules, matchers) if matches(pattern.path)]
        for name, method, kind in _names(rule):
            winner = next(other for other in candidates if _is_for(other, method, kind))
            found.setdefault(name, _probability(_percent(winner)))
    return [
        OperationStrategy(operation=name, probabilistic_sampling=Probabilistic(sampling_rate=probability))
        for name, probability in found.items()
    ]


def _is_for(rule: Rule, method: str, kind: EntryKind) -> bool:
    pattern = rule.selector.pattern
    return pattern is not None and pattern.method in ("", method) and rule.selector.matches_kind(kind)


def _names(rule: Rule) -> Iterator[_Name]:
    """The span names of a rule by operation without a wildcard: `GET /pay` as it is, `/pay` also with each method, and
    `/pkg.Service/Method` without its slash, as the conventions for RPC spans have it."""
    pattern, protocol = rule.selector.pattern, rule.selector.protocol
    assert pattern is not None
    text, method, path = pattern.text, pattern.method, pattern.path
    if not path.startswith("/") or protocol in ("internal", "db"):
        yield _Name(text, method, PROTOCOLS[protocol or "internal"])
        return
    if protocol in (None, "grpc") and not method:
        if path.count("/") == 2:
            yield _Name(path[1:], "", EntryKind.GRPC)
        if protocol == "grpc":
            yield _Name(path, "", EntryKind.GRPC)
    if protocol in (None, "http"):
        for each in (method,) if method else ("", *_METHODS):
            yield _Name(f"{each} {path}".lstrip(), each, EntryKind.HTTP)
