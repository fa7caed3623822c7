"""`spandial token`, without a running agent."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path
from typing import Any

import pytest

from spandial_api.selectors import Selector
from spandial_api.token_file import TokenFile
from spandial_api.tokens import Token
from tests.spandial_agent.command import run, run_all


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def settings(state_dir: Path) -> dict[str, str]:
    return {"SPANDIAL_STATE_DIR": str(state_dir)}


def tokens_of(state_dir: Path) -> dict[str, Token]:
    return {token.name: token for token in TokenFile(state_dir).read()}


def listed(settings: dict[str, str]) -> list[dict[str, Any]]:
    return list(json.loads(run(settings, "token", "list", "--json")[0]))


def test_a_token_is_printed_once_and_alone_and_only_its_hash_is_kept(settings: dict[str, str], state_dir: Path) -> None:
    out, err = run(settings, "token", "add", "ci", "--service", "checkout", "--label", "team=pay*", "--ttl", "30d")
    assert re.fullmatch(r"[\w-]{43}\n", out)
    assert "token ci may write for 30d: service=checkout label.team=pay*" in err
    assert "shown this once" in err
    found = TokenFile(state_dir).read().find(out.strip())
    assert found is not None
    assert (found.name, found.scope) == ("ci", "write")
    assert found.binding == Selector("checkout", labels=(("team", "pay*"),))
    assert found.expires is not None
    assert found.expires - found.created == pytest.approx(30 * 86_400)
    kept = "".join(path.read_text() for path in state_dir.iterdir())
    assert out.strip() not in kept
    assert {stat.S_IMODE(path.stat().st_mode) for path in state_dir.iterdir()} == {0o600}
    assert stat.S_IMODE(state_dir.stat().st_mode) == 0o700


def test_every_field_of_a_selector_can_bind(settings: dict[str, str], state_dir: Path) -> None:
    fields = {"service": "s", "version": "v", "env": "e", "protocol": "db", "operation": "GET /x*", "tenant": "t"}
    options = [part for name, text in fields.items() for part in (f"--{name}", text)]
    run(settings, "token", "add", "ci", *options, "--label", "team=a", "--label", "zone=b=c", "--scope", "admin")
    binding = Selector("s", "v", "e", "db", "GET /x*", "t", (("team", "a"), ("zone", "b=c")))
    assert tokens_of(state_dir)["ci"].binding == binding
    assert tokens_of(state_dir)["ci"].scope == "admin"


def test_the_list_has_everything_but_what_holders_send(settings: dict[str, str]) -> None:
    out, _ = run(settings, "token", "add", "prometheus", "--scope", "read", "--json")
    made = json.loads(out)
    assert made["may_touch"] == "all rules"
    run(settings, "token", "add", "ci", "--service", "checkout", "--ttl", "30d")
    lines = run(settings, "token", "list")[0].splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["token", "may"],
        ["operator", "admin"],
        ["prometheus", "read"],
        ["ci", "write"],
    ]
    assert "service=checkout" in lines[3]
    assert "29d23h" in lines[3]
    as_json = listed(settings)
    assert [token["name"] for token in as_json] == ["operator", "prometheus", "ci"]
    assert {key: as_json[1][key] for key in made if key != "token"} == {k: v for k, v in made.items() if k != "token"}
    assert not any("token" in token or "sha256" in token for token in as_json)


def test_a_removed_token_is_gone(settings: dict[str, str], state_dir: Path) -> None:
    run(settings, "token", "add", "ci")
    assert run(settings, "token", "rm", "ci")[0] == "removed token ci\n"
    assert [*tokens_of(state_dir)] == ["operator"]
    _, err = run(settings, "token", "rm", "ci", code=1)
    assert err == "spandial: there is no token 'ci'; 'spandial token list' has all\n"


def test_without_the_operators_token_there_is_no_copy_of_it(settings: dict[str, str], state_dir: Path) -> None:
    run(settings, "token", "add", "ci")
    assert (state_dir / "token").exists()
    run(settings, "token", "rm", "operator")
    assert sorted(path.name for path in state_dir.iterdir()) == [".tokens.lock", "tokens.json"]
    run(settings, "token", "rm", "ci")
    assert "nobody is let in over TCP" in run(settings, "token", "list")[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ci", "--scope", "root"], "a scope is one of read, write, admin; received 'root'"),
        (["a b"], "a token's name is 1 to 64 letters, digits and . _ @ - after the first; received 'a b'"),
        (["ci", "--protocol", "smtp"], "protocol is one of internal, http, grpc, db; received 'smtp'"),
        (["ci", "--service", ""], "service is a glob of 1 to 255 printable characters; received ''"),
        (["ci", "--label", "team"], "--label is NAME=GLOB, such as team=payments; received 'team'"),
        (["ci", "--ttl", "soon"], "a time from 1s to 366d"),
        (["operator"], "there is a token operator already"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_changed(
    settings: dict[str, str], state_dir: Path, arguments: list[str], message: str
) -> None:
    state_dir.mkdir()
    TokenFile(state_dir).make()
    before = (state_dir / "tokens.json").read_text()
    out, err = run(settings, "token", "add", *arguments, code=1)
    assert out == ""
    assert err.startswith(f"spandial: {message}")
    assert (state_dir / "tokens.json").read_text() == before


def test_a_file_that_is_not_there_or_broken_is_named(settings: dict[str, str], state_dir: Path) -> None:
    for command in (["list"], ["rm", "ci"]):
        _, err = run(settings, "token", *command, code=1)
        assert err.startswith(f"spandial: there is no {state_dir}")
        assert "SPANDIAL_STATE_DIR" in err
    state_dir.mkdir()
    (state_dir / "tokens.json").write_text("{}")
    for command in (["list"], ["rm", "ci"], ["add", "ci"]):
        _, err = run(settings, "token", *command, code=1)
        assert err.startswith(f"spandial: {state_dir}/tokens.json holds no tokens: tokens: ")
    assert (state_dir / "tokens.json").read_text() == "{}"


def test_tokens_that_are_made_at_once_are_all_kept(settings: dict[str, str], state_dir: Path) -> None:
    run_all(settings, [["token", "add", f"t{number}"] for number in range(4)])
    assert set(tokens_of(state_dir)) == {"operator", "t0", "t1", "t2", "t3"}


def test_every_commands_help_shows_an_example() -> None:
    commands = ["add", "list", "rm"]
    for command, (out, _) in zip(commands, run_all(None, [["token", command, "--help"] for command in commands])):
        assert re.search(rf"Example: sudo spandial token {command}\b", out)
