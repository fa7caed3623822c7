"""The tokens' file."""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
from pathlib import Path

import pytest

from spandial_api.selectors import Selector
from spandial_api.token_file import OPERATOR, TokenFile
from spandial_api.tokens import Token, Tokens, digest_of


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def made(folder: Path) -> TokenFile:
    file = TokenFile(folder)
    file.make()
    return file


def operators(folder: Path) -> str:
    return (folder / "token").read_text().strip()


def ci(sends: str = "secret") -> Token:
    return Token("ci", digest_of(sends), "write")


class FullDisk(TokenFile):
    def _write(self, tokens: Tokens) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def names(tokens: Tokens) -> list[str]:
    return [token.name for token in tokens]


def test_the_first_start_makes_an_operators_token_that_only_its_owner_reads(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        file = made(tmp_path)
    finally:
        os.umask(before)
    assert len(operators(tmp_path)) >= 32
    assert (mode_of(tmp_path / "token"), mode_of(tmp_path / "tokens.json")) == (0o600, 0o600)
    found = file.refresh().find(operators(tmp_path))
    assert found is not None
    assert (found.name, found.scope) == (OPERATOR, "admin")
    assert operators(tmp_path) not in (tmp_path / "tokens.json").read_text()


def test_later_starts_have_the_same_tokens(tmp_path: Path) -> None:
    made(tmp_path).change(lambda tokens: tokens.with_token(ci()))
    before = operators(tmp_path), (tmp_path / "tokens.json").read_text()
    assert names(made(tmp_path).refresh()) == [OPERATOR, "ci"]
    assert (operators(tmp_path), (tmp_path / "tokens.json").read_text()) == before


def test_two_nodes_have_different_tokens(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        made(tmp_path / name)
    assert operators(tmp_path / "one") != operators(tmp_path / "other")


def test_the_token_of_an_older_version_and_one_that_somebody_chose_are_taken_in(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("  chosen-by-hand \n")
    path.chmod(0o640)
    found = made(tmp_path).refresh().find("chosen-by-hand")
    assert found is not None
    assert found.name == OPERATOR
    assert mode_of(path) == 0o640


@pytest.mark.parametrize("content", ["", "\n", " " * 500])
def test_a_file_left_empty_is_filled_for_its_owner_only(tmp_path: Path, content: str) -> None:
    path = tmp_path / "token"
    path.write_text(content)
    path.chmod(0o644)
    assert made(tmp_path).refresh().find(operators(tmp_path)) is not None
    assert len(operators(tmp_path)) >= 32
    assert mode_of(path) == 0o600


def test_a_removed_operator_stays_removed(tmp_path: Path) -> None:
    made(tmp_path).change(lambda tokens: tokens.without(OPERATOR))
    assert not (tmp_path / "token").exists()
    assert names(made(tmp_path).refresh()) == []
    assert not (tmp_path / "token").exists()


def test_a_copy_that_lets_nobody_in_is_told(tmp_path: Path) -> None:
    made(tmp_path)
    (tmp_path / "token").write_text("changed by hand")
    said: list[str] = []
    TokenFile(tmp_path, said.append).make()
    assert said == [f"the token in {tmp_path}/token is none of those in {tmp_path}/tokens.json, and lets nobody in."]


def test_a_change_is_seen_by_who_has_read_before(tmp_path: Path) -> None:
    running = made(tmp_path)
    assert running.refresh().find("secret") is None
    TokenFile(tmp_path).change(lambda tokens: tokens.with_token(ci()))
    assert running.refresh().find("secret") == ci()
    TokenFile(tmp_path).change(lambda tokens: tokens.without("ci"))
    assert running.refresh().find("secret") is None
    assert not running.trouble


def test_a_file_that_has_not_changed_is_not_read_again(tmp_path: Path) -> None:
    running = made(tmp_path)
    assert running.refresh() is running.refresh()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"x" * 2_000_000])
def test_a_broken_file_takes_no_token_away_and_is_told_once(tmp_path: Path, content: bytes) -> None:
    said: list[str] = []
    running = TokenFile(tmp_path, said.append)
    running.make()
    whole = running.path.read_bytes()
    running.path.write_bytes(content)
    assert [names(running.refresh()) for _ in range(3)] == [[OPERATOR]] * 3
    assert said == [running.trouble]
    assert "those from before still hold" in running.trouble
    assert str(running.path) in running.trouble
    running.path.write_bytes(whole)
    assert names(running.refresh()) == [OPERATOR]
    assert running.trouble == ""


def test_so_does_one_that_is_gone(tmp_path: Path) -> None:
    said: list[str] = []
    running = TokenFile(tmp_path, said.append)
    running.make()
    away = running.path.rename(tmp_path / "away")
    assert [names(running.refresh()) for _ in range(3)] == [[OPERATOR]] * 3
    assert said == [running.trouble]
    away.rename(running.path)
    assert names(running.refresh()) == [OPERATOR]
    assert running.trouble == ""


def test_a_broken_file_lets_nobody_in_who_was_not_known(tmp_path: Path) -> None:
    (tmp_path / "tokens.json").write_text("{")
    (tmp_path / "token").write_text("secret")
    file = made(tmp_path)
    assert file.refresh().find("secret") is None
    assert file.trouble


def test_a_broken_file_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "tokens.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokens\.json holds no tokens: JSON"):
        TokenFile(tmp_path).change(lambda tokens: tokens.with_token(ci()))
    assert (tmp_path / "tokens.json").read_text() == "{"


def test_a_change_that_cannot_be_made_changes_nothing(tmp_path: Path) -> None:
    file = made(tmp_path)
    before = file.path.read_text()
    with pytest.raises(KeyError):
        file.change(lambda tokens: tokens.without("ci"))
    assert file.path.read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tokens.lock", "token", "tokens.json"]


def test_more_than_can_be_read_again_is_not_written(tmp_path: Path) -> None:
    file = made(tmp_path)
    before = file.path.read_text()
    binding = Selector(labels=tuple((f"l{number:03}", "x" * 250) for number in range(100)))
    many = [Token(f"t{number}", digest_of(str(number)), "write", binding) for number in range(50)]
    with pytest.raises(ValueError, match="would be longer than 1048576 bytes"):
        file.change(lambda tokens: Tokens([*tokens, *many]))
    assert file.path.read_text() == before


def test_changes_at_once_lose_none(tmp_path: Path) -> None:
    def add(number: int) -> None:
        token = Token(f"t{number}", digest_of(str(number)), "read")
        TokenFile(tmp_path).change(lambda tokens: tokens.with_token(token))

    threads = [threading.Thread(target=add, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = json.loads((tmp_path / "tokens.json").read_text())["tokens"]
    assert {row["name"] for row in rows} == {OPERATOR, *(f"t{number}" for number in range(20))}


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=str(tmp_path / "none")):
        made(tmp_path / "none")


def test_where_nothing_can_be_written_the_token_of_an_older_version_still_holds(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret")
    said: list[str] = []
    file = FullDisk(tmp_path, said.append)
    file.make()
    assert names(file.refresh()) == [OPERATOR]
    assert file.tokens.find("secret") is not None
    assert said == [file.trouble]
    assert not file.path.exists()


def test_where_nothing_can_be_written_and_there_is_no_token_the_reason_is_told(tmp_path: Path) -> None:
    (tmp_path / "token").mkdir()
    with pytest.raises(OSError, match="token"):
        made(tmp_path)


def test_a_copy_that_is_no_text_is_a_token_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(b"\xff\xfe secret")
    assert names(made(tmp_path).refresh()) == [OPERATOR]
