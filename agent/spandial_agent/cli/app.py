"""The command line. Exit codes: 0 done, 1 refused or degraded, 2 wrong usage, 3 no agent."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import time
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from spandial_agent.cli.budgets import budgets
from spandial_agent.cli.console import AsJson, client, err, out, print_json, read_settings, reported
from spandial_agent.cli.rules import rules
from spandial_agent.cli.switch import switch
from spandial_agent.cli.tables import explanation_table, lost_context, off_line, stats_table, targets_table
from spandial_agent.cli.tokens import tokens
from spandial_agent.errors import AgentUnreachable, SpandialError
from spandial_agent.settings import misspelt
from spandial_agent.text import printable
from spandial_api.host_names import parse_host_names

__all__ = ["app"]

app = typer.Typer(
    help="One dial for the trace-sampling rate of every process on this node.",
    epilog="Exit codes: 0 done, 1 refused or degraded, 2 wrong usage, 3 no agent.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(rules)
app.add_typer(budgets)
app.add_typer(switch)
app.add_typer(tokens, name="token")


@app.command(epilog="Example: sudo spandial agent")
def agent() -> None:
    """Run the node's agent until it is told to stop. Settings: SPANDIAL_* variables, see 'spandial doctor'."""
    gc.disable()  # as in `main`; the agent enables it when all its parts are there
    from spandial_agent.agent import run_agent
    from spandial_agent.log import configure_log

    with reported():
        settings = read_settings()
        log = configure_log(settings.log)
        asyncio.run(run_agent(settings, log))


@app.command(epilog="Example: spandial relay --to https://spandial-agents:5778 --ca ca.pem --token-file token")
def relay(
    to: Annotated[str, typer.Option(help="The agents' URL; each address of its host's name is an agent.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=0, max=65535)] = 5779,
    certificate: Annotated[
        Path | None, typer.Option(envvar="SPANDIAL_TLS_CERT", help="Serve by TLS with this certificate, in PEM.")
    ] = None,
    key: Annotated[Path | None, typer.Option(envvar="SPANDIAL_TLS_KEY", help="Its key, in PEM.")] = None,
    client_ca: Annotated[
        Path | None,
        typer.Option(envvar="SPANDIAL_TLS_CLIENT_CA", help="Clients must show a certificate of these, in PEM."),
    ] = None,
    token_file: Annotated[Path | None, typer.Option(help="Token for requests that bring none but a secret.")] = None,
    secret_file: Annotated[
        Path | None, typer.Option(help="Who names what is in it, as /via/SECRET/sampling, is lent the token.")
    ] = None,
    host_name: Annotated[
        str, typer.Option(envvar="SPANDIAL_HOST_NAMES", help="Names by which the relay is asked, with commas.")
    ] = "",
    ca: Annotated[Path | None, typer.Option(help="Trust these certificates of the agents, in PEM.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds for all agents together.", min=0.1, max=600)] = 8.0,
) -> None:
    """Pass changes of rules on to every agent behind a name, as a release tool calls one URL alone."""
    from spandial_agent.log import configure_log
    from spandial_agent.serving.relay import Lending, build_relay, run_relay

    with reported():
        configure_log("console")
        lending = None if token_file is None else Lending(token_file, secret_file, client_ca is not None)
        try:
            names = parse_host_names(host_name) | {host.lower()}
        except ValueError as error:
            raise SpandialError(f"--host-name: {error}") from None
        built = build_relay(to, lending=lending, ca=ca, timeout_s=timeout, host_names=names)
        if lending is not None and secret_file is None and client_ca is None:
            err.print("nobody is lent the token of --token-file: give --secret-file, or --client-ca with --certificate")
        run_relay(built, host, port, certificate, key, client_ca)


@app.command(epilog="Example: spandial targets --explain 4711")
def targets(
    explain: Annotated[
        int | None, typer.Option(metavar="PID", min=1, help="Say why this process is a target or not, and its ports.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the processes under control, the rate of each, and why it is under control."""
    with reported():
        if explain is not None:
            answer = client().request("GET", "/targets/explain", pid=str(explain))
            print_json(answer) if as_json else out.print(explanation_table(answer))
            return
        agent_client = client()
        answer = agent_client.request("GET", "/targets")
        if as_json:
            print_json(answer)
            return
        out.print(targets_table(answer))
        if off := off_line(agent_client.request("GET", "/switch")):
            err.print(off)


@app.command(epilog="Example: spandial watch --env gray")
def watch(
    service: Annotated[str, typer.Option(help="Service name, a glob.")] = "*",
    env: Annotated[str, typer.Option(help="Environment, a glob.")] = "*",
    as_json: AsJson = False,
) -> None:
    """Print the kept entries as the kernel sees them, until Ctrl-C."""
    with reported():
        for entry in client().stream("/entries", service=service, env=env):
            if as_json:
                print(json.dumps(entry), flush=True)
                continue
            if entry["lost"]:
                err.print(f"{entry['lost']} entries came faster than they could be shown")
            moment = datetime.fromtimestamp(entry["time"]).strftime("%H:%M:%S.%f")[:-3]
            asked = entry["statement"] or f"{entry['method'] or entry['operation'] or '?'} {entry['path']}".strip()
            line = (
                f"{moment} {entry['pid']:>7} {entry['service']}/{entry['version'] or '-'}/{entry['env'] or '-'} "
                f"{entry['protocol']} {asked} {entry['trace_id'] or '-'} by {entry['kept_by']}"
            )
            out.print(printable(line))
        err.print("the agent has ended the stream: it stops, or gives up memory ('spandial doctor' says which)")


@app.command(epilog="Example: spandial stats --watch")
def stats(
    as_json: AsJson = False,
    follow: Annotated[bool, typer.Option("--watch", help="Show it anew every second, until Ctrl-C.")] = False,
) -> None:
    """Show what the kernel and the hooks counted, their difference, and every loss."""
    with reported():
        agent_client = client()
        while True:
            answer = agent_client.request("GET", "/stats")
            if as_json:
                print_json(answer)
            else:
                if follow:
                    out.clear()
                out.print(stats_table(answer))
            if not follow:
                return
            time.sleep(1)


@app.command(epilog="Example: sudo spandial doctor")
def doctor(as_json: AsJson = False) -> None:
    """Say what works here and what is missing, with or without a running agent, and where trace contexts are lost.

    Exit code 1 if anything is missing.
    """
    with reported():
        settings = read_settings()
        context_lost: list[dict[str, Any]] = []
        try:
            agent_client = client()
            health = agent_client.request("GET", "/healthz")
            context_lost = agent_client.request("GET", "/stats")["context_lost"]
        except AgentUnreachable as error:
            from spandial_agent.capture.capture import is_compiled
            from spandial_agent.kernel.cache import CompileCache
            from spandial_agent.kernel.probe import missing_for_kernel

            compiled = is_compiled(CompileCache(settings.compiled_dir), settings.forced_path)
            health = {"agent": str(error), "missing": missing_for_kernel(compiled=compiled)}
        health["missing"] += misspelt(os.environ)
        if as_json:
            print_json({**health, "context_lost": context_lost, "settings": settings.model_dump(mode="json")})
        else:
            for key, value in health.items():
                if key != "missing":
                    out.print(printable(f"{key:>14}  {value}"))
            for sentence in health["missing"] or ["nothing"]:
                out.print(printable(f"{'missing':>14}  {sentence}"))
            for pair in context_lost:
                out.print(f"{'context lost':>14}  {printable(lost_context(pair))}")
            for name, value in settings.model_dump().items():
                out.print(printable(f"{'setting':>14}  SPANDIAL_{name.upper()}={value}"))
        if health["missing"]:
            raise typer.Exit(1)
        if "agent" in health:
            raise typer.Exit(3)
