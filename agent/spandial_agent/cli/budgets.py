"""The commands that ask for the node's budget and the tenants' quotas, and change them."""

from __future__ import annotations

from typing import Annotated

import typer

from spandial_agent.cli.console import AsJson, client, out, print_json, reported
from spandial_agent.cli.tables import budget_line, quotas_table

__all__ = ["budgets"]

budgets = typer.Typer()

Remove = Annotated[bool, typer.Option("--remove", help="Back to what the agent's settings say.")]
Why = Annotated[str | None, typer.Option(help="The reason.")]


@budgets.command(epilog="Example: spandial budget 5000")
def budget(
    entries: Annotated[str | None, typer.Argument(help="Kept entries a second, all targets together.")] = None,
    remove: Remove = False,
    why: Why = None,
    as_json: AsJson = False,
) -> None:
    """Show or set what the node may keep. Where the rules ask for more, rates are lowered, and come back by
    themselves."""
    if remove and entries is not None:
        raise typer.BadParameter("either ENTRIES or --remove, not both")
    method = "DELETE" if remove else "GET" if entries is None else "PUT"
    with reported():
        answer = client().request(method, "/budget", entries=entries, why=why if method != "GET" else None)
        print_json(answer) if as_json else out.print(budget_line(answer))


@budgets.command(epilog="Example: spandial quota acme 100")
def quota(
    tenant: Annotated[str | None, typer.Argument(help="The tenant; without it, all are shown.")] = None,
    entries: Annotated[str | None, typer.Argument(help="Kept entries a second.")] = None,
    remove: Remove = False,
    why: Why = None,
    as_json: AsJson = False,
) -> None:
    """Show the tenants' quotas and circuits, or set one. Whose rules ask for much more, for long, is held at a low
    rate."""
    if tenant is not None and (entries is None) is not remove:
        raise typer.BadParameter("with a TENANT either ENTRIES or --remove")
    if tenant is None and remove:
        raise typer.BadParameter("--remove needs a TENANT")
    with reported():
        if tenant is not None:
            method = "DELETE" if remove else "PUT"
            client().request(method, "/quotas", tenant=tenant, entries=entries, why=why)
        answer = client().request("GET", "/quotas")
        print_json(answer) if as_json else out.print(quotas_table(answer))
