"""The rules as AWS X-Ray's centralized sampling has them. Pure.

Shapes: X-Ray API reference, GetSamplingRules and GetSamplingTargets, as SDKs read them from the daemon or the
collector's proxy. A client takes the first rule that matches, in the order of their priorities.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from spandial.labels import Labels
from spandial_api.known import whole_per_second
from spandial_api.rules import Rule, RuleBook
from spandial_api.selectors import Selector, selector_text

__all__ = ["DEFAULT_NAME", "RULES_MAX", "XRayRule", "xray_rules"]

DEFAULT_NAME = "Default"  # clients give it to whatever no other rule matches
_DEFAULT_PRIORITY = 10_000
RULES_MAX = 5_000  # a client reports on each of them, in one request

_NAME_MAX = 32
_ANY_METHOD = "?*"  # no request without one has this


class XRayRule(NamedTuple):
    """One rule.

    Attributes:
        rate: share of the requests that the reservoir has no room for.
        reservoir: kept requests per second, all clients together.
    """

    name: str
    priority: int
    service: str
    method: str
    path: str
    attributes: tuple[tuple[str, str], ...]
    rate: float
    reservoir: int


class _Match(NamedTuple):
    """The requests that a rule is for."""

    method: str = "*"
    path: str = "*"
    attributes: tuple[tuple[str, str], ...] = ()


def xray_rules(book: RuleBook, known: Mapping[str, Labels], default: float) -> list[XRayRule]:
    """The rules in the order of their priorities, the last of them for everything else.

    X-Ray knows a service's name, and `*` and `?`. A rule that names more, or has another glob, becomes one for every
    known service that it is for as a whole. Rules for what is no HTTP request or gRPC call, or for single gRPC calls,
    and those by a span's name are left out, and what is more than `RULES_MAX`.

    Args:
        known: the labels that all processes of a service have, by service.
        default: percentage where no rule is for a request.
    """
    found: list[XRayRule] = []
    for rule in book:
        match = _match(rule.selector)
        if match is None or rule.selector == Selector():
            continue
        for service in _services(rule.selector, known):
            if len(found) == RULES_MAX - 1:
                break
            name = _name(rule.selector, service)
            found.append(XRayRule(name, len(found) + 1, service, *match, *_rate(rule)))
    rest = book.rules.get(Selector())
    rate = _rate(rest) if rest is not None else (_share(default), 0)
    return [*found, XRayRule(DEFAULT_NAME, _DEFAULT_PRIORITY, "*", *_Match(), *rate)]


def _services(selector: Selector, known: Mapping[str, Labels]) -> Iterator[str]:
    pattern = selector.service
    by_name = not (selector.version or selector.env or selector.tenant or selector.labels)
    if by_name and "[" not in (pattern or ""):
        yield pattern or "*"
        return
    names = (pattern,) if pattern is not None and pattern in known else sorted(known)
    for name in names:
        # A name with a wildcard in it would be one.
        if not {"*", "?"} & set(name) and selector.matches_labels(known[name]):
            yield name


def _match(selector: Selector) -> _Match | None:
    """None for what X-Ray cannot say."""
    pattern = selector.pattern
    if pattern is None:
        matches: dict[str | None, _Match] = {
            None: _Match(),
            "http": _Match(method=_ANY_METHOD),
            "grpc": _Match(attributes=(("rpc.system", "grpc"),)),
        }
        return matches.get(selector.protocol)
    if selector.protocol not in (None, "http") or not pattern.path.startswith(("/", "*")) or "[" in pattern.path:
        return None
    any_method = "*" if selector.protocol is None else _ANY_METHOD
    return _Match(method=pattern.method or any_method, path=pattern.path)


def _rate(rule: Rule) -> tuple[float, int]:
    if rule.target is not None:
        return _share(rule.floor), whole_per_second(rule.target)
    return _share(rule.rate or 0.0), 0


def _share(percent: float) -> float:
    return round(min(max(percent, 0.0), 100.0) / 100, 12)


def _name(selector: Selector, service: str) -> str:
    """As people write the selector, if that is short enough; always the same, and no other rule's."""
    text = selector_text(selector)
    if len(text) <= _NAME_MAX and service == (selector.service or "*"):
        return text
    digest = hashlib.blake2b(f"{service}\n{text}".encode(errors="surrogatepass"), digest_size=6).hexdigest()
    return f"{text[: _NAME_MAX - 1 - len(digest)]} {digest}"
