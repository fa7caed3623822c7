"""Who changed which rules, when and why. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from spandial_api.rules import Rule, RuleBook
from spandial_api.selectors import Selector, selector_text

__all__ = ["Action", "Change", "Changed", "Entry", "LimitChange", "UndoConflict", "changes_of", "effective", "undoing"]

Action = Literal["put", "renew", "remove", "batch", "undo", "expire", "budget", "quota", "off", "on"]


class Change(NamedTuple):
    """What is to become of the rules: first some are removed, then others put, under one revision."""

    action: Action
    put: tuple[Rule, ...] = ()
    removed: tuple[Selector, ...] = ()


class Changed(NamedTuple):
    """One rule's change; None before it was put, and after it was removed."""

    selector: Selector
    before: Rule | None
    after: Rule | None


class LimitChange(NamedTuple):
    """The change of a tenant's quota, or of the node's budget (no tenant): kept entries a second; None: the default."""

    tenant: str | None
    before: float | None
    after: float | None


@dataclass(frozen=True)
class Entry:
    """One revision.

    Attributes:
        time: Unix time in seconds.
        who: a peer's uid, or the name of a token; "spandial" where a rule ended by itself.
        why: as the one who changed it said; empty where nothing was said.
    """

    revision: int
    time: float
    who: str
    action: Action
    why: str
    changes: tuple[Changed, ...] = ()
    limit: LimitChange | None = None


class UndoConflict(Exception):
    """A revision cannot be undone; says why."""


def changes_of(change: Change, before: RuleBook, after: RuleBook) -> tuple[Changed, ...]:
    """What a change made of each rule that it names."""
    selectors = dict.fromkeys([*change.removed, *(rule.selector for rule in change.put)])
    return tuple(Changed(selector, before.rules.get(selector), after.rules.get(selector)) for selector in selectors)


def undoing(entry: Entry, book: RuleBook, now: float) -> Change:
    """What makes the rules of a revision what they were before it. A rule that would have ended by now stays away.

    Raises UndoConflict where a later revision has changed one of them, or nothing would change.
    """
    if entry.action in ("off", "on"):
        raise UndoConflict(f"revision {entry.revision} switched the node {entry.action}, and changed no rule")
    if entry.limit is not None:
        raise UndoConflict(f"revision {entry.revision} changed a {entry.action}, and no rule: put the one before it")
    put: list[Rule] = []
    removed: list[Selector] = []
    for selector, before, after in entry.changes:
        current = book.rules.get(selector)
        if (current is None) != (after is None) or (current and after and current.revision != after.revision):
            changed = "has been removed since" if current is None else f"has revision {current.revision} by now"
            raise UndoConflict(
                f"revision {entry.revision} cannot be undone: the rule for {selector_text(selector)} {changed}; "
                "undo what came later first, or put the rule that you want"
            )
        if before is not None and (before.expires is None or before.expires > now):
            put.append(replace(before, revision=0))
        elif current is not None:
            removed.append(selector)
    if not put and not removed:
        raise UndoConflict(f"nothing of revision {entry.revision} is left to undo: its rules have ended by themselves")
    return Change("undo", tuple(put), tuple(removed))


def effective(change: Change, rules: dict[Selector, Rule]) -> Change:
    """The change without the rules that are already there as they are to be."""
    return change._replace(put=tuple(rule for rule in change.put if not _is_there(rule, rules)))


def _is_there(rule: Rule, rules: dict[Selector, Rule]) -> bool:
    known = rules.get(rule.selector)
    return known is not None and known.says == rule.says
