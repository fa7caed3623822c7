"""The command line. Exit codes: 0 done, 1 refused or degraded, 2 wrong usage, 3 no agent."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console

from spandial_agent.client import AgentUnreachable, Client
from spandial_agent.errors import SpandialError
from spandial_agent.settings import Settings
from spandial_agent.views import (
    explanation_table,
    lost_context,
    printable,
    rule_line,
    rules_table,
    stats_table,
    targets_table,
    verdicts_table,
)

__all__ = ["app"]

app = typer.Typer(
    help="One dial for the trace-sampling rate of every process on this node.",
    epilog="Exit codes: 0 done, 1 refused or degraded, 2 wrong usage, 3 no agent.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
# Names are printed as they are, and nothing is cut off: long lines are the terminal's to wrap.
_WIDTH = 1 << 16
_out = Console(width=_WIDTH, markup=False, emoji=False, highlight=False)
_err = Console(width=_WIDTH, markup=False, emoji=False, highlight=False, stderr=True)

Service = Annotated[str | None, typer.Option(help="Service name, a glob.")]
Env = Annotated[str | None, typer.Option(help="Environment, a glob.")]
Version = Annotated[str | None, typer.Option(help="Service version, a glob.")]
Protocol = Annotated[str | None, typer.Option(help="http, grpc, db or internal.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command(epilog="Example: sudo spandial agent")
def agent() -> None:
    """Run the node's agent until it is told to stop. Settings: SPANDIAL_* variables, see 'spandial doctor'."""
    from spandial_agent.agent import configure_log, run_agent

    with _reported():
        settings = _settings()
        configure_log(settings.log)
        asyncio.run(run_agent(settings))


@app.command(epilog="Example: spandial relay --to https://spandial-agents:5778 --ca ca.pem --token-file token")
def relay(
    to: Annotated[str, typer.Option(help="The agents' URL; each address of its host's name is an agent.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=0, max=65535)] = 5779,
    certificate: Annotated[Path | None, typer.Option(help="Serve by TLS with this certificate, in PEM.")] = None,
    key: Annotated[Path | None, typer.Option(help="The certificate's key, in PEM.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="Token for requests that bring none.")] = None,
    ca: Annotated[Path | None, typer.Option(help="Trust these certificates of the agents, in PEM.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds for all agents together.", min=0.1, max=600)] = 8.0,
) -> None:
    """Pass changes of rules on to every agent behind a name, as a release tool calls one URL alone."""
    from spandial_agent.relay import build_relay, run_relay

    with _reported():
        run_relay(build_relay(to, token_file=token_file, ca=ca, timeout_s=timeout), host, port, certificate, key)


@app.command("set", epilog="Example: spandial set 30 --env gray --ttl 10m")
def set_rate(
    rate: Annotated[str, typer.Argument(help="Percentage 0-100: 30, 0.1 or 30%.")],
    service: Service = None,
    env: Env = None,
    version: Version = None,
    protocol: Protocol = None,
    mode: Annotated[str, typer.Option(help="follow, boost or strict.")] = "follow",
    ttl: Annotated[str | None, typer.Option(help="End by itself after this time: 90s, 10m, 1h30m.")] = None,
    as_json: AsJson = False,
) -> None:
    """Turn the dial. Without a selector this sets the node's default."""
    selector = {"service": service, "env": env, "version": version, "protocol": protocol}
    with _reported():
        answer = _client().request("PUT", "/sampling", rate=rate, mode=mode, ttl=ttl, **selector)
        _print_json(answer) if as_json else _out.print(rule_line(answer))


@app.command(epilog="Example: spandial renew 10m --env gray")
def renew(
    ttl: Annotated[str, typer.Argument(help="How long the rule holds from now on: 90s, 10m, 1h30m.")],
    service: Service = None,
    env: Env = None,
    version: Version = None,
    protocol: Protocol = None,
    as_json: AsJson = False,
) -> None:
    """Have the rule of exactly this selector end later, or sooner."""
    selector = {"service": service, "env": env, "version": version, "protocol": protocol}
    with _reported():
        answer = _client().request("PUT", "/sampling/renew", ttl=ttl, **selector)
        _print_json(answer) if as_json else _out.print(rule_line(answer))


@app.command(epilog="Example: spandial get --json")
def get(as_json: AsJson = False) -> None:
    """List the rules, the ones that win first."""
    with _reported():
        answer = _client().request("GET", "/sampling")
        _print_json(answer) if as_json else _out.print(rules_table(answer))


@app.command(epilog="Example: spandial rm --env gray")
def rm(
    service: Service = None,
    env: Env = None,
    version: Version = None,
    protocol: Protocol = None,
    as_json: AsJson = False,
) -> None:
    """Remove the rule of exactly this selector; without one, the node's default."""
    with _reported():
        answer = _client().request("DELETE", "/sampling", service=service, env=env, version=version, protocol=protocol)
        _print_json(answer) if as_json else _out.print(f"removed {answer['removed']} (revision {answer['revision']})")


@app.command(epilog="Example: spandial explain --service checkout --env gray")
def explain(
    service: Annotated[str, typer.Option(help="Service name.")] = "",
    env: Annotated[str, typer.Option(help="Environment.")] = "",
    version: Annotated[str, typer.Option(help="Service version.")] = "",
    as_json: AsJson = False,
) -> None:
    """Say which rule wins for a process with these labels, and why the others lose. It need not be running."""
    with _reported():
        answer = _client().request("GET", "/sampling/explain", service=service, env=env, version=version)
        _print_json(answer) if as_json else _out.print(verdicts_table(answer))


@app.command(epilog="Example: spandial targets --explain 4711")
def targets(
    explain: Annotated[
        int | None, typer.Option(metavar="PID", min=1, help="Say why this process is a target or not, and its ports.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the processes under control, the rate of each, and why it is under control."""
    with _reported():
        if explain is not None:
            answer = _client().request("GET", "/targets/explain", pid=str(explain))
            _print_json(answer) if as_json else _out.print(explanation_table(answer))
            return
        answer = _client().request("GET", "/targets")
        _print_json(answer) if as_json else _out.print(targets_table(answer))


@app.command(epilog="Example: spandial watch --env gray")
def watch(
    service: Annotated[str, typer.Option(help="Service name, a glob.")] = "*",
    env: Annotated[str, typer.Option(help="Environment, a glob.")] = "*",
    as_json: AsJson = False,
) -> None:
    """Print the kept entries as the kernel sees them, until Ctrl-C."""
    with _reported():
        for entry in _client().stream("/entries", service=service, env=env):
            if as_json:
                print(json.dumps(entry), flush=True)
                continue
            if entry["lost"]:
                _err.print(f"{entry['lost']} entries came faster than they could be shown")
            moment = datetime.fromtimestamp(entry["time"]).strftime("%H:%M:%S.%f")[:-3]
            asked = entry["statement"] or f"{entry['method'] or entry['operation'] or '?'} {entry['path']}".strip()
            line = (
                f"{moment} {entry['pid']:>7} {entry['service']}/{entry['version'] or '-'}/{entry['env'] or '-'} "
                f"{entry['protocol']} {asked} {entry['trace_id'] or '-'} by {entry['kept_by']}"
            )
            _out.print(printable(line))


@app.command(epilog="Example: spandial stats --watch")
def stats(
    as_json: AsJson = False,
    follow: Annotated[bool, typer.Option("--watch", help="Show it anew every second, until Ctrl-C.")] = False,
) -> None:
    """Show what the kernel and the hooks counted, their difference, and every loss."""
    with _reported():
        client = _client()
        while True:
            answer = client.request("GET", "/stats")
            if as_json:
                _print_json(answer)
            else:
                if follow:
                    _out.clear()
                _out.print(stats_table(answer))
            if not follow:
                return
            time.sleep(1)


@app.command(epilog="Example: sudo spandial doctor")
def doctor(as_json: AsJson = False) -> None:
    """Say what works here and what is missing, with or without a running agent, and where trace contexts are lost.

    Exit code 1 if anything is missing.
    """
    with _reported():
        settings = _settings()
        context_lost: list[dict[str, Any]] = []
        try:
            client = Client(settings.run_dir)
            health = client.request("GET", "/healthz")
            context_lost = client.request("GET", "/stats")["context_lost"]
        except AgentUnreachable as error:
            from spandial_agent.kernel.cache import CompileCache
            from spandial_agent.kernel.capture import is_compiled
            from spandial_agent.kernel.probe import missing_for_kernel

            compiled = is_compiled(CompileCache(settings.compiled_dir), settings.forced_path)
            health = {"agent": str(error), "missing": missing_for_kernel(compiled=compiled)}
        if as_json:
            _print_json({**health, "context_lost": context_lost, "settings": settings.model_dump(mode="json")})
        else:
            for key, value in health.items():
                if key != "missing":
                    _out.print(f"{key:>14}  {value}")
            for sentence in health["missing"] or ["nothing"]:
                _out.print(f"{'missing':>14}  {sentence}")
            for pair in context_lost:
                _out.print(f"{'context lost':>14}  {printable(lost_context(pair))}")
            for name, value in settings.model_dump().items():
                _out.print(f"{'setting':>14}  SPANDIAL_{name.upper()}={value}")
        if health["missing"]:
            raise typer.Exit(1)
        if "agent" in health:
            raise typer.Exit(3)


def _settings() -> Settings:
    try:
        return Settings()
    except ValidationError as error:
        problems = [
            f"SPANDIAL_{str(e['loc'][0]).upper()}={printable(str(e['input']))}: {e['msg']}" for e in error.errors()
        ]
        raise SpandialError("; ".join(problems)) from error


def _client() -> Client:
    return Client(_settings().run_dir)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


@contextmanager
def _reported() -> Iterator[None]:
    """Errors as one line and an exit code."""
    try:
        yield
    except AgentUnreachable as error:
        _err.print(f"spandial: {error}")
        raise typer.Exit(3) from error
    except SpandialError as error:
        _err.print(f"spandial: {error}")
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        raise typer.Exit(0) from None
