"""What all commands share: the terminal, the agent to talk to, and errors as one line and an exit code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console

from spandial_agent.errors import AgentUnreachable, SpandialError
from spandial_agent.settings import Settings
from spandial_agent.text import printable

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from spandial_agent.cli.client import Client

__all__ = ["AsJson", "client", "err", "out", "print_json", "read_settings", "reported"]

# Names are printed as they are, and nothing is cut off: long lines are the terminal's to wrap.
_WIDTH = 1 << 16
out = Console(width=_WIDTH, markup=False, emoji=False, highlight=False)
err = Console(width=_WIDTH, markup=False, emoji=False, highlight=False, stderr=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def read_settings() -> Settings:
    """Raises SpandialError that names the variable."""
    try:
        return Settings()
    except ValidationError as error:
        raise SpandialError("; ".join(map(_problem, error.errors()))) from error


def _problem(error: ErrorDetails) -> str:
    if not error["loc"]:  # of several settings together, which it names
        return error["msg"].removeprefix("Value error, ")
    return f"SPANDIAL_{str(error['loc'][0]).upper()}={printable(str(error['input']))}: {error['msg']}"


def client() -> Client:
    """The agent of this run directory."""
    from spandial_agent.cli.client import Client  # with httpx, which the agent itself does without

    return Client(read_settings().run_dir)


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


@contextmanager
def reported() -> Iterator[None]:
    """Errors as one line and an exit code."""
    try:
        yield
    except AgentUnreachable as error:
        err.print(printable(f"spandial: {error}"))
        raise typer.Exit(3) from error
    except SpandialError as error:
        err.print(printable(f"spandial: {error}"))
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        raise typer.Exit(0) from None
