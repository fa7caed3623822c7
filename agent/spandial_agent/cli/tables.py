"""The agent's answers as tables for a terminal."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from spandial_agent.text import printable
from spandial_api.durations import format_duration

__all__ = [
    "audit_table",
    "budget_line",
    "explanation_table",
    "lost_context",
    "quotas_table",
    "rule_line",
    "rules_table",
    "stats_table",
    "targets_table",
    "tokens_table",
    "verdicts_table",
]

_OPERATIONS = 3  # that a target is shown with


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        name, right, _ = column.partition(">")
        table.add_column(Text(name), justify="right" if right else "left", no_wrap=True)
    return table


def _row(table: Table, *cells: object) -> None:
    table.add_row(*(Text("-" if cell in (None, "") else printable(str(cell))) for cell in cells))


def rule_line(rule: dict[str, Any]) -> str:
    """A rule that was just put or renewed."""
    reached, expires = rule["reached"], rule["expires"]
    targets = f"{reached} target" + ("" if reached == 1 else "s")
    end = "" if expires is None else f", until {datetime.fromtimestamp(expires).strftime('%Y-%m-%d %H:%M:%S')}"
    note = "" if rule["in_kernel"] else ", by hooks alone: the kernel knows paths and their beginnings only"
    held = f"{rate_text(rule)}, {rule['mode']}{end}, obeyed by {targets}{note}"
    return printable(f"{rule['selector']}: {held} (revision {rule['revision']})")


def rate_text(rule: dict[str, Any]) -> str:
    """A rule's rate, or what it is steered to."""
    return f"{rule['rate']:g} %" if rule["rate"] is not None else f"{rule['target']:g}/s"


def rules_table(answer: dict[str, Any]) -> RenderableType:
    """GET /sampling."""
    table = _table("rule", "rate>", "mode", "targets>", "revision>", "ends in>")
    for rule in answer["rules"]:
        left = None if rule["expires"] is None else format_duration(rule["expires"] - time.time())
        _row(table, rule["selector"], rate_text(rule), rule["mode"], rule["reached"], rule["revision"], left)
    return table if answer["rules"] else Text("no rules: every target keeps its own default")


def audit_table(answer: dict[str, Any]) -> RenderableType:
    """GET /audit: a line for each rule that a revision changed."""
    table = _table("revision>", "time", "who", "what", "rule", "before>", "after>", "why")
    for entry in answer["entries"]:
        moment = datetime.fromtimestamp(entry["time"]).strftime("%Y-%m-%d %H:%M:%S")
        limit = entry["limit"]
        if limit is not None:
            of = "budget" if limit["tenant"] is None else f"tenant {limit['tenant']}"
            figures = [None if limit[name] is None else f"{limit[name]:g}/s" for name in ("before", "after")]
            _row(table, entry["revision"], moment, entry["who"], entry["action"], of, *figures, entry["why"])
        elif entry["action"] in ("off", "on"):
            _row(table, entry["revision"], moment, entry["who"], entry["action"], "node", None, None, entry["why"])
        for change in entry["changes"]:
            says = [None if rule is None else _said(rule) for rule in (change["before"], change["after"])]
            _row(
                table, entry["revision"], moment, entry["who"], entry["action"], change["selector"], *says, entry["why"]
            )
    return table if answer["entries"] else Text("no rule has been changed")


def _said(rule: dict[str, Any]) -> str:
    end = "" if rule["expires"] is None else f" until {datetime.fromtimestamp(rule['expires']).strftime('%H:%M:%S')}"
    return f"{rate_text(rule)} {rule['mode']}{end}"


def verdicts_table(answer: dict[str, Any]) -> RenderableType:
    """GET /sampling/explain: a line for each rule, and one for the kinds that no rule is for."""
    table = _table("rule", "rate>", "mode", "wins for", "why not")
    for rule in answer["rules"]:
        _row(table, rule["selector"], rate_text(rule), rule["mode"], ", ".join(rule["wins"]), rule["why"])
    default = Text(f"the process's own default holds for {', '.join(answer['default'])}")
    parts: list[RenderableType] = [table] if answer["rules"] else []
    return Group(*parts, *([default] if answer["default"] else []))


def tokens_table(answer: list[dict[str, Any]]) -> RenderableType:
    """`spandial token list`."""
    table = _table("token", "may", "may touch", "made", "ends in>")
    for token in answer:
        made = datetime.fromtimestamp(token["created"]).strftime("%Y-%m-%d")
        end = token["expires"]
        left = None if end is None else "expired" if end <= time.time() else format_duration(end - time.time())
        _row(table, token["name"], token["scope"], token["may_touch"], made, left)
    return table if answer else Text("no tokens: nobody is let in over TCP")


def budget_line(answer: dict[str, Any]) -> str:
    """GET /budget."""
    asked = "" if answer["demand"] is None else f"; the rules ask for {answer['demand']:.4g}/s"
    if answer["entries"] is None:
        return f"no budget{asked}"
    limited = f"{answer['limited']} target{'' if answer['limited'] == 1 else 's'} limited"
    return f"budget {answer['entries']:g} kept entries/s{asked}; {limited}"


def switch_line(answer: dict[str, Any], health: dict[str, Any]) -> str:
    """PUT /switch, and what /healthz says then."""
    if answer["state"] == "on":
        if health["capture"] == "off":
            return printable(f"on: hooks obey the rules; capture is off: {' '.join(health['missing'])}")
        return "on: the kernel captures, and hooks obey the rules"
    until = "until 'spandial on'"
    if answer["until"] is not None:
        until = f"until {datetime.fromtimestamp(answer['until']).strftime('%Y-%m-%d %H:%M:%S')}"
    rate = answer["fallback_rate"]
    hooks = "hooks keep what OTEL_TRACES_SAMPLER_ARG says, 100 % where it is not set ('spandial set 1' would say less)"
    if rate is not None:
        hooks = f"hooks keep {rate:g} %, the node's default"
    return f"off, {until}: no program or probe is in the kernel, and {hooks}"


def off_line(answer: dict[str, Any]) -> str:
    """GET /switch, beside rates that are not obeyed; empty while it is on."""
    if answer["state"] == "on":
        return ""
    return "the agent is switched off: no rule but the node's default is obeyed until 'spandial on'"


def quotas_table(answer: dict[str, Any]) -> RenderableType:
    """GET /quotas."""
    table = _table("tenant", "quota/s>", "asked for/s>", "circuit", "since>", "set by")
    for quota in answer["quotas"]:
        since = None if quota["lasted"] is None else format_duration(quota["lasted"])
        by = quota["who"] or "settings"
        _row(table, quota["tenant"], f"{quota['entries']:g}", f"{quota['demand']:.4g}", quota["circuit"], since, by)
    default = "no quota" if answer["default"] is None else f"{answer['default']:g} kept entries/s each"
    parts: list[RenderableType] = [table] if answer["quotas"] else []
    return Group(*parts, Text(f"all other tenants: {default}"))


def _rate_in_force(state: dict[str, Any]) -> str:
    return f"{state['rate']:.6g}" + (f" (limited by {state['limited']})" if state["limited"] else "")


def targets_table(answer: list[dict[str, Any]]) -> RenderableType:
    """GET /targets. One rate where all kinds of entry have the same; then those of operations."""
    table = _table("pid>", "name", "service", "version", "env", "kind", "rate %", "rule", "tls", "why")
    for target in answer:
        rates = {kind: _rate_in_force(state) for kind, state in target["rates"].items()}
        same = len(set(rates.values())) == 1
        rate = rates["http"] if same else " ".join(f"{kind}={value}" for kind, value in rates.items())
        rules = dict.fromkeys(state["rule"] for state in target["rates"].values())
        operations = target.get("operations", [])
        more = [f"{len(operations) - _OPERATIONS} more"] if len(operations) > _OPERATIONS else []
        of_operations = [f"{state['operation']}={state['rate']:g}" for state in operations[:_OPERATIONS]] + more
        _row(
            table,
            target["pid"],
            target["name"],
            target["service"],
            target["version"],
            target["env"],
            target["kind"],
            ", ".join([rate, *of_operations]),
            "; ".join(rules),
            target["tls"],
            target["why"],
        )
    nobody = "no targets: no process names a service (OTEL_SERVICE_NAME), or is included by a rule (SPANDIAL_DISCOVER)"
    return table if answer else Text(nobody)


def explanation_table(answer: dict[str, Any]) -> RenderableType:
    """GET /targets/explain: the reason, a line for each rule, the ports, a line for each peer."""
    process = f"{answer['pid']} {answer['name']}".strip()
    verdict = "a target" if answer["target"] else "no target"
    table = _table("rule", "matched", "why")
    for rule in answer["rules"]:
        _row(table, rule["rule"], "yes" if rule["matched"] else "no", rule["why"])
    parts: list[RenderableType] = [Text(printable(f"{process} is {verdict}: {answer['why']}"))]
    if answer["rules"]:
        parts.append(table)
    if answer["listens"]:
        parts.append(Text(f"listens on {', '.join(map(str, answer['listens']))}"))
    if answer["connections"]:
        parts.append(_connections_table(answer["connections"]))
    return Group(*parts)


def _connections_table(groups: list[dict[str, Any]]) -> Table:
    table = _table("connected", "server's port>", "connections>")
    for group in groups:
        _row(table, f"{'from' if group['incoming'] else 'to'} {group['address']}", group["port"], group["count"])
    return table


def lost_context(pair: dict[str, Any]) -> str:
    """A pair of targets between which trace contexts are lost, as a sentence."""
    client, server = (f"{pair[end]['service']} (pid {pair[end]['pid']})" for end in ("client", "server"))
    example = pair["example"]
    moment, since = (datetime.fromtimestamp(at).strftime("%H:%M:%S") for at in (example["time"], pair["since"]))
    return (
        f"requests of {client} leave with traceparent and come to {server} without: {pair['count']} since {since}, "
        f"such as {example['method']} {example['path']} at {moment} of trace {example['trace_id']}"
    )


def stats_table(answer: dict[str, Any]) -> RenderableType:
    """GET /stats: a line for each target and kind of entry, what became of spans, the losses that are not zero.

    "traced" counts kept entries with a trace context; the differences are kernel less hook, all entries and traced.
    "at turns" counts entries that were between kernel and hook when their rate turned, at most.
    """
    columns = ("kernel seen>", "kept>", "traced>", "hook seen>", "kept>", "difference>", "at turns>")
    table = _table("pid>", "service", "env", "kind", *columns)
    for target in answer["targets"]:
        for kind, counts in target["kinds"].items():
            kernel, hook = counts["kernel"] or {}, counts["hook"]
            seen = kept = difference = at_turns = None
            if hook is not None:
                kept = hook["root_kept"] + hook["remote_kept"]
                seen = kept + hook["root_dropped"] + hook["remote_dropped"]
            if counts["difference_seen"] is not None:
                at_turns = counts["in_flight_at_turns"]
                difference = "/".join(
                    f"{counts[name]:+d}" for name in ("difference_seen", "difference_kept") if counts[name] is not None
                )
            service = f"{target['service']} {target['version']}".strip()
            kernel_counts = [kernel.get(name) for name in ("seen", "kept", "kept_traced")]
            _row(table, target["pid"], service, target["env"], kind, *kernel_counts, seen, kept, difference, at_turns)
    losses = ", ".join(f"{reason} {count}" for reason, count in answer["losses"].items() if count) or "none"
    contexts = [Text(printable(f"context lost: {lost_context(pair)}")) for pair in answer["context_lost"]]
    spans = [Text(_spans(answer["spans"]))] if answer.get("spans") else []  # an older agent says nothing of them
    return Group(table, *spans, Text(f"losses: {losses}"), *contexts)


def _spans(spans: dict[str, Any]) -> str:
    kept, exported, queued, lost = spans["kept"], spans["exported"], spans["queued"], sum(spans["lost"].values())
    return f"spans: {kept} kept, {exported} exported, {queued} waiting, {lost} lost"
