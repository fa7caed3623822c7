"""The commands that take everything of the agent's away at once, and bring it back."""

from __future__ import annotations

from typing import Annotated

import typer

from spandial_agent.cli.console import AsJson, client, out, print_json, reported
from spandial_agent.cli.tables import switch_line

__all__ = ["switch"]

switch = typer.Typer()

Why = Annotated[str | None, typer.Option(help="The reason.")]


@switch.command(epilog="Example: spandial off --ttl 10m --why 'latency of checkout'")
def off(
    ttl: Annotated[str | None, typer.Option(help="On again after so long, such as 10m or 1h30m.")] = None,
    why: Why = None,
    as_json: AsJson = False,
) -> None:
    """Take all programs and probes out of the kernel at once, and leave the hooks at their fallback rates."""
    with reported():
        answer = client().request("PUT", "/switch", state="off", ttl=ttl, why=why)
        print_json(answer) if as_json else out.print(switch_line(answer))


@switch.command(epilog="Example: spandial on")
def on(why: Why = None, as_json: AsJson = False) -> None:
    """Capture again, and have the hooks obey the rules again."""
    with reported():
        answer = client().request("PUT", "/switch", state="on", why=why)
        print_json(answer) if as_json else out.print(switch_line(answer))
