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
        _turn(as_json, state="off", ttl=ttl, why=why)


@switch.command(epilog="Example: spandial on")
def on(why: Why = None, as_json: AsJson = False) -> None:
    """Capture again, and have the hooks obey the rules again."""
    with reported():
        _turn(as_json, state="on", why=why)


def _turn(as_json: bool, **how: str | None) -> None:
    agent = client()
    answer = agent.request("PUT", "/switch", **how)
    if as_json:
        print_json(answer)
    else:
        out.print(switch_line(answer, agent.request("GET", "/healthz")))
