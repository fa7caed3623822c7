"""Rules and the audit log as they are stored: JSON."""

from __future__ import annotations

import json
from typing import Any, get_args

from spandial.abi import Mode
from spandial.patterns import parse_operation
from spandial_api.audit import Action, Changed, Entry, LimitChange
from spandial_api.rules import DEFAULT_FLOOR, Rule
from spandial_api.selectors import FIELDS, PROTOCOLS, Selector

__all__ = ["entry_changes", "parse_entry", "parse_rule", "parse_selector", "rule_text", "selector_key"]


def selector_key(selector: Selector) -> str:
    """A selector as a key: fields that are not named are left out."""
    named: dict[str, Any] = {name: value for name in FIELDS if (value := getattr(selector, name)) is not None}
    if selector.labels:
        named["labels"] = dict(selector.labels)
    return json.dumps(named, sort_keys=True)


def parse_selector(key: str) -> Selector:
    """Raises ValueError for what this version cannot obey: another version may have stored it."""
    named = json.loads(key)
    if not isinstance(named, dict) or not named.keys() <= {*FIELDS, "labels"}:
        raise ValueError(f"{key!r:.200} is no selector")
    protocol, labels = named.pop("protocol", None), named.pop("labels", {})
    if protocol is not None and (not isinstance(protocol, str) or protocol not in PROTOCOLS):
        raise ValueError(f"there is no protocol {protocol!r}")
    if not isinstance(labels, dict) or not all(isinstance(text, str) for text in [*named.values(), *labels.values()]):
        raise ValueError(f"{key!r:.200} is no selector")
    if "operation" in named:
        parse_operation(named["operation"])
    return Selector(**named, protocol=protocol, labels=tuple(sorted(labels.items())))


def rule_text(rule: Rule) -> str:
    """A rule without its selector."""
    says: dict[str, Any] = {"mode": int(rule.mode), "revision": rule.revision}
    if rule.rate is not None:
        says["rate"] = rule.rate
    if rule.expires is not None:
        says["expires"] = rule.expires
    if rule.target is not None:
        says |= {"target": rule.target, "floor": rule.floor}
    return json.dumps(says)


def parse_rule(key: str, text: str) -> Rule:
    """Raises ValueError for what this version cannot obey."""
    says = json.loads(text)
    if not isinstance(says, dict):
        raise ValueError(f"{text!r:.200} is no rule")
    rate, target, floor = says.get("rate"), says.get("target"), says.get("floor", DEFAULT_FLOOR)
    if (rate is None) == (target is None):
        raise ValueError(f"{text!r:.200} has not one of rate and target")
    for number, least, greatest in ((rate, 0, 100), (floor, 0, 100), (target, 0, 1e12)):
        if number is not None and (not isinstance(number, int | float) or not least <= number <= greatest):
            raise ValueError(f"{number!r} is no rate")
    expires, revision, mode = says.get("expires"), says.get("revision"), says.get("mode")
    if not isinstance(expires, int | float | None) or not isinstance(revision, int) or not isinstance(mode, int):
        raise ValueError(f"{text!r:.200} is no rule")
    return Rule(parse_selector(key), rate, Mode(mode), revision, expires, target, floor)


def entry_changes(entry: Entry) -> str:
    """What a revision changed."""
    if entry.limit is not None:
        return json.dumps({"limit": entry.limit})
    rows = [
        [selector_key(selector), *(None if rule is None else rule_text(rule) for rule in (before, after))]
        for selector, before, after in entry.changes
    ]
    return json.dumps(rows)


def parse_entry(revision: int, time: float, who: str, action: str, why: str, changes: str) -> Entry:
    """Raises ValueError."""
    known: Action | None = next((name for name in get_args(Action) if name == action), None)
    if known is None:
        raise ValueError(f"there is no action {action!r}")
    told = json.loads(changes)
    try:
        if isinstance(told, dict):
            return Entry(revision, time, who, known, why, limit=LimitChange(*told["limit"]))
        changed = [
            Changed(parse_selector(key), *(None if rule is None else parse_rule(key, rule) for rule in (before, after)))
            for key, before, after in told
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{changes!r:.200} are no changes") from error
    return Entry(revision, time, who, known, why, tuple(changed))
