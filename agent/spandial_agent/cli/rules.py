"""The commands that ask for rules and change them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spandial_agent.cli.console import AsJson, client, err, out, print_json, reported
from spandial_agent.cli.tables import audit_table, off_line, rule_line, rules_table, verdicts_table
from spandial_agent.errors import SpandialError
from spandial_agent.text import printable

if TYPE_CHECKING:
    from spandial_agent.cli.client import Client

__all__ = ["rules"]

rules = typer.Typer()

Service = Annotated[str | None, typer.Option(help="Service name, a glob.")]
Env = Annotated[str | None, typer.Option(help="Environment, a glob.")]
Version = Annotated[str | None, typer.Option(help="Service version, a glob.")]
Tenant = Annotated[str | None, typer.Option(help="Tenant, a glob.")]
Label = Annotated[list[str] | None, typer.Option(help="Another resource attribute, NAME=GLOB; may be repeated.")]
Protocol = Annotated[str | None, typer.Option(help="http, grpc, db or internal.")]
Operation = Annotated[str | None, typer.Option(help="Route, call or span name, a glob: 'GET /pay*', '/pkg.Service/*'.")]
Why = Annotated[str | None, typer.Option(help="The reason, for the audit log.")]


def _labels(given: list[str] | None) -> dict[str, str | None]:
    pairs = [text.partition("=") for text in given or ()]
    for name, equals, glob in pairs:
        if not name or not equals:
            raise SpandialError(f"--label takes NAME=GLOB, such as team=pay; received {name + equals + glob!r}")
    return {f"label.{name}": glob for name, _, glob in pairs}


@rules.command("set", epilog="Example: spandial set 30 --env gray --ttl 10m")
def set_rate(
    rate: Annotated[str | None, typer.Argument(help="Percentage 0-100: 30, 0.1 or 30%.")] = None,
    service: Service = None,
    env: Env = None,
    version: Version = None,
    tenant: Tenant = None,
    label: Label = None,
    protocol: Protocol = None,
    operation: Operation = None,
    target: Annotated[
        str | None, typer.Option(help="In place of a rate: kept entries per second and service on this node.")
    ] = None,
    floor: Annotated[str | None, typer.Option(help="With --target: no rate goes below this percentage.")] = None,
    mode: Annotated[str, typer.Option(help="follow, boost or strict.")] = "follow",
    ttl: Annotated[str | None, typer.Option(help="End by itself after this time: 90s, 10m, 1h30m.")] = None,
    why: Why = None,
    as_json: AsJson = False,
) -> None:
    """Turn the dial. Without a selector this sets the node's default."""
    named = {"service": service, "env": env, "version": version, "tenant": tenant, "protocol": protocol}
    if rate is None and target is None:
        raise typer.BadParameter("a RATE, such as 30; or --target in its place")
    if floor is not None and target is None:
        raise typer.BadParameter("--floor needs --target, too: only rates that are steered have a floor")
    rates = {"rate": rate, "target": target, "floor": floor, "mode": mode, "ttl": ttl}
    with reported():
        selector = {**named, "operation": operation, **_labels(label)}
        agent = client()
        answer = agent.request("PUT", "/sampling", **rates, why=why, **selector)
        print_json(answer) if as_json else _print_rules(agent, [answer])


@rules.command(epilog="Example: spandial renew 10m --env gray")
def renew(
    ttl: Annotated[str, typer.Argument(help="How long the rule holds from now on: 90s, 10m, 1h30m.")],
    service: Service = None,
    env: Env = None,
    version: Version = None,
    tenant: Tenant = None,
    label: Label = None,
    protocol: Protocol = None,
    operation: Operation = None,
    why: Why = None,
    as_json: AsJson = False,
) -> None:
    """Have the rule of exactly this selector end later, or sooner."""
    named = {"service": service, "env": env, "version": version, "tenant": tenant, "protocol": protocol}
    with reported():
        selector = {**named, "operation": operation, **_labels(label)}
        agent = client()
        answer = agent.request("PUT", "/sampling/renew", ttl=ttl, why=why, **selector)
        print_json(answer) if as_json else _print_rules(agent, [answer])


@rules.command(epilog="Example: spandial get --json")
def get(as_json: AsJson = False) -> None:
    """List the rules, the ones that win first."""
    with reported():
        answer = client().request("GET", "/sampling")
        print_json(answer) if as_json else out.print(rules_table(answer))


@rules.command(epilog="Example: spandial rm --env gray")
def rm(
    service: Service = None,
    env: Env = None,
    version: Version = None,
    tenant: Tenant = None,
    label: Label = None,
    protocol: Protocol = None,
    operation: Operation = None,
    why: Why = None,
    as_json: AsJson = False,
) -> None:
    """Remove the rule of exactly this selector; without one, the node's default."""
    named = {"service": service, "env": env, "version": version, "tenant": tenant, "protocol": protocol}
    with reported():
        selector = {**named, "operation": operation, **_labels(label)}
        answer = client().request("DELETE", "/sampling", why=why, **selector)
        print_json(answer) if as_json else out.print(f"removed {answer['removed']} (revision {answer['revision']})")


@rules.command(epilog="Example: spandial apply release.json")
def apply(
    file: Annotated[str, typer.Argument(help="JSON as POST /sampling/batch takes it; - for standard input.")],
    as_json: AsJson = False,
) -> None:
    """Put and remove rules together, under one revision: all of them, or none."""
    with reported():
        agent = client()
        answer = agent.request("POST", "/sampling/batch", body=_read(file))
        if as_json:
            print_json(answer)
            return
        _print_rules(agent, answer["rules"])
        for selector in answer["removed"]:
            out.print(f"removed {printable(selector)} (revision {answer['revision']})")


def _print_rules(agent: Client, put: list[dict[str, Any]]) -> None:
    for rule in put:
        out.print(rule_line(rule))
    if off := off_line(agent.request("GET", "/switch")):
        err.print(off)


def _read(file: str) -> Any:
    try:
        return json.loads(sys.stdin.read() if file == "-" else Path(file).read_text())
    except OSError as error:
        raise SpandialError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise SpandialError(f"{file} is no JSON: {error}") from error


@rules.command(epilog="Example: spandial explain --service checkout --env gray")
def explain(
    service: Annotated[str, typer.Option(help="Service name.")] = "",
    env: Annotated[str, typer.Option(help="Environment.")] = "",
    version: Annotated[str, typer.Option(help="Service version.")] = "",
    tenant: Annotated[str, typer.Option(help="Tenant.")] = "",
    label: Annotated[list[str] | None, typer.Option(help="Another resource attribute, NAME=VALUE.")] = None,
    operation: Annotated[str | None, typer.Option(help="One operation, such as 'GET /pay'.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say which rule wins for a process with these labels, and why the others lose. It need not be running."""
    named = {"service": service, "env": env, "version": version, "tenant": tenant, "operation": operation}
    with reported():
        answer = client().request("GET", "/sampling/explain", **named, **_labels(label))
        print_json(answer) if as_json else out.print(verdicts_table(answer))


@rules.command(epilog="Example: spandial log --limit 20")
def log(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many revisions.")] = 20,
    before: Annotated[int | None, typer.Option(min=1, help="Only revisions older than this one.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show who changed which rules, when and why, the latest first."""
    with reported():
        older = None if before is None else str(before)
        answer = client().request("GET", "/audit", limit=str(limit), before=older)
        print_json(answer) if as_json else out.print(audit_table(answer))


@rules.command(epilog="Example: spandial undo 7")
def undo(
    revision: Annotated[int, typer.Argument(min=1, help="The revision, as 'spandial log' shows it.")],
    why: Why = None,
    as_json: AsJson = False,
) -> None:
    """Make the rules that a revision changed what they were before it, unless they have been changed since."""
    with reported():
        answer = client().request("POST", "/sampling/undo", revision=str(revision), why=why)
        print_json(answer) if as_json else out.print(audit_table({"entries": [answer]}))
