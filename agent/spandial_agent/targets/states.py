"""Targets as the control plane sees them: what they obey, and what was counted of them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spandial import abi
from spandial.abi import EntryKind, Mode, word_rate
from spandial_agent.capture.counts import Counts
from spandial_agent.capture.operation_map import applies
from spandial_agent.targets.limit import Limit
from spandial_agent.targets.target import Target
from spandial_agent.text import printable
from spandial_api.node import KindName
from spandial_api.node_states import HookCounts, KernelCounts, KindStats, RateState, TargetState, TargetStats
from spandial_api.rules import Rule
from spandial_api.selectors import PROTOCOLS, selector_text

__all__ = ["KIND_NAMES", "target_state", "target_stats"]

KIND_NAMES: dict[EntryKind, KindName] = {kind: name for name, kind in PROTOCOLS.items()}


def target_state(target: Target, words: Sequence[int], limit: Limit | None, tls: str) -> TargetState:
    """What a target obeys.

    Args:
        words: of its row.
        limit: what holds its rates below those of its rules.
        tls: what is seen of its TLS, in words.
    """
    rates = {}
    for kind, rule in zip(EntryKind, target.rules):
        rates[KIND_NAMES[kind]] = RateState.model_validate(_rate(words[kind], rule, limit))
    return TargetState.model_validate(
        {
            "pid": target.pid,
            "uid": target.uid,
            "name": printable(target.process.name),
            **target.labels.main,
            "tenant": target.labels.tenant,
            "labels": dict(target.labels.others),
            "kind": "hooked" if target.hooked else "discovered",
            "row": target.row.number,
            "rates": rates,
            "operations": _operations(target, limit),
            "why": target.why,
            "tls": printable(tls),
            "hooks": [page.hook._asdict() for page in target.pages],
        }
    )


def target_stats(target: Target, kernel: Counts | None, *, comparable: bool = True) -> TargetStats:
    """What was counted of a target's entries.

    Args:
        kernel: the kernel's counts of its row; None where there are none.
        comparable: both count now; else nothing is said of their difference.
    """
    hook = [sum(column) for column in zip(*(page.read() for page in target.pages))]
    kinds = {}
    for kind in EntryKind:
        state = _kind_stats(kind, kernel, target.base, hook, comparable)
        if state.difference_kept is not None:
            state.in_flight_at_turns = target.in_flight[kind].at_most([page.traced(kind) for page in target.pages])
        if any([*(state.kernel or KernelCounts()).model_dump().values()]) or any(
            (state.hook or HookCounts()).model_dump().values()
        ):
            kinds[KIND_NAMES[kind]] = state
    return TargetStats.model_validate({"pid": target.pid, **target.labels.main, "kinds": kinds})


def _rate(word: int, rule: Rule | None, limit: Limit | None) -> dict[str, Any]:
    return {
        "rate": round(word_rate(word) or 0.0, 10),
        "mode": Mode(word & abi.MODE_MASK).name.lower(),
        "rule": selector_text(rule.selector) if rule else "default",
        "target": rule.target if rule else None,
        "limited": limit.why if limit is not None else "",
    }


def _operations(target: Target, limit: Limit | None) -> list[dict[str, Any]]:
    """What `OperationState` says of a target, the rules that win first; nothing where they found no room."""
    obeyed = target.operations
    if obeyed is None or not obeyed.named:
        return []
    return [
        {
            **_rate(max(own.words), rule, limit),
            "operation": own.pattern.text,
            "kinds": [KIND_NAMES[kind] for kind in own.kinds],
            "kernel": obeyed.in_kernel and applies(own.pattern),
        }
        for rule, own in zip(target.group.operations, obeyed.rules)
    ]


def _kind_stats(
    kind: EntryKind, kernel: Counts | None, base: Counts | None, hook: list[int], comparable: bool
) -> KindStats:
    """One kind's counts since the target was hooked, or since it became one."""
    seen_by_kernel = seen_by_hook = None
    if kernel is not None:
        seen_by_kernel = KernelCounts.model_validate(
            {
                name: now[kind] - (getattr(base, name)[kind] if base is not None else 0)
                for name, now in kernel._asdict().items()
            }
        )
    if hook:
        first = kind * abi.PAGE_KIND_STRIDE
        names = ("root_dropped", "root_kept", "remote_dropped", "remote_kept", "local_dropped", "local_kept")
        seen_by_hook = HookCounts.model_validate(dict(zip(names, hook[first:])))
    seen = kept = None
    if comparable and kind != EntryKind.INTERNAL and seen_by_kernel is not None and seen_by_hook is not None:
        if kind == EntryKind.DB:
            # Most have a local parent, of which the kernel knows nothing. A database in the process it never sees.
            if seen_by_kernel.seen:
                seen = seen_by_kernel.seen - seen_by_hook.decisions
        else:
            seen = seen_by_kernel.seen - seen_by_hook.entries
            kept = seen_by_kernel.kept_traced - seen_by_hook.remote_kept
    return KindStats(kernel=seen_by_kernel, hook=seen_by_hook, difference_seen=seen, difference_kept=kept)
