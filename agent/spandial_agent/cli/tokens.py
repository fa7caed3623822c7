"""`spandial token`: who may use the HTTP interface. Works on the file, with or without a running agent."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from spandial_agent.cli.console import AsJson, err, out, print_json, read_settings, reported
from spandial_agent.cli.tables import tokens_table
from spandial_agent.errors import SpandialError
from spandial_api.bindings import EVERYTHING, binding_fields, parse_binding
from spandial_api.durations import parse_duration
from spandial_api.folders import make_folder
from spandial_api.selectors import selector_text
from spandial_api.token_file import TokenFile
from spandial_api.tokens import SCOPES, Token, check_token_name, digest_of, new_token

__all__ = ["tokens"]

tokens = typer.Typer(
    help="Make, list and remove the tokens that let others in over TCP. A running agent obeys at once.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Name = Annotated[str, typer.Argument(help="Its name in the audit log.")]


@tokens.command(epilog="Example: sudo spandial token add ci --service checkout --ttl 30d")
def add(
    name: Name,
    scope: Annotated[str, typer.Option(help="read, write or admin; each implies those before.")] = "write",
    service: Annotated[str | None, typer.Option(help="It may only touch rules for this service, a glob.")] = None,
    env: Annotated[str | None, typer.Option(help="The same of an environment, a glob.")] = None,
    version: Annotated[str | None, typer.Option(help="The same of a service version, a glob.")] = None,
    tenant: Annotated[str | None, typer.Option(help="The same of a tenant, a glob.")] = None,
    protocol: Annotated[str | None, typer.Option(help="The same of http, grpc, db or internal.")] = None,
    operation: Annotated[str | None, typer.Option(help="The same of an operation: 'GET /pay*'.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="The same of a label: team=payments.")] = None,
    ttl: Annotated[str | None, typer.Option(help="It ends by itself after this time: 12h, 30d.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a token and print it, this once: only its hash is kept."""
    fields = {
        "service": service,
        "env": env,
        "version": version,
        "tenant": tenant,
        "protocol": protocol,
        "operation": operation,
    }
    with reported():
        given = {field: text for field, text in fields.items() if text is not None}
        for pair in label or []:
            label_name, equals, text = pair.partition("=")
            if not label_name or not equals:
                raise SpandialError(f"--label is NAME=GLOB, such as team=payments; received {pair!r}")
            given[f"label.{label_name}"] = text
        plain = new_token()
        token = _token(name, plain, scope, given, ttl)
        with _changing():
            file = _file()
            os.close(make_folder(file.path.parent, 0o700))
            file.change(lambda before: before.with_token(token))
        if as_json:
            print_json({**_shown(token), "token": plain})
            return
        print(plain)
        end = "" if ttl is None else f" for {ttl}"
        err.print(f"token {name} may {scope}{end}: {_shown(token)['may_touch']}")
        err.print("it is shown this once, and kept nowhere but as its hash")


@tokens.command("list", epilog="Example: sudo spandial token list")
def list_tokens(as_json: AsJson = False) -> None:
    """List the tokens, without what their holders send."""
    with reported():
        with _changing():
            shown = [_shown(token) for token in _file().read()]
        print_json(shown) if as_json else out.print(tokens_table(shown))


@tokens.command(epilog="Example: sudo spandial token rm ci")
def rm(name: Name) -> None:
    """Remove a token: whoever has it is let in no more."""
    with reported():
        try:
            with _changing():
                _file().change(lambda before: before.without(name))
        except KeyError:
            raise SpandialError(f"there is no token {name!r}; 'spandial token list' has all") from None
        out.print(f"removed token {name}")


def _file() -> TokenFile:
    return TokenFile(read_settings().state_dir)


def _token(name: str, plain: str, scope: str, binding: dict[str, str], ttl: str | None) -> Token:
    """Raises SpandialError."""
    try:
        check_token_name(name)
        known = next((known for known in SCOPES if known == scope), None)
        if known is None:
            raise ValueError(f"a scope is one of {', '.join(SCOPES)}; received {scope!r}")
        now = time.time()
        expires = None if ttl is None else now + parse_duration(ttl)
        return Token(name, digest_of(plain), known, parse_binding(binding), now, expires)
    except ValueError as error:
        raise SpandialError(str(error)) from error


def _shown(token: Token) -> dict[str, Any]:
    return {
        "name": token.name,
        "scope": token.scope,
        "binding": binding_fields(token.binding),
        "may_touch": selector_text(token.binding) if token.binding != EVERYTHING else "all rules",
        "created": token.created,
        "expires": token.expires,
    }


@contextmanager
def _changing() -> Iterator[None]:
    """What is wrong with the file, or with the change, as SpandialError."""
    try:
        yield
    except FileNotFoundError as error:
        raise SpandialError(
            f"there is no {error.filename}: an agent's first start makes it, or 'spandial token add'; "
            "SPANDIAL_STATE_DIR says where"
        ) from error
    except OSError as error:
        raise SpandialError(f"{error}: run as root, or set SPANDIAL_STATE_DIR") from error
    except ValueError as error:
        raise SpandialError(str(error)) from error
