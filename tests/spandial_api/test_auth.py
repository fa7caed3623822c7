"""Who may write, and the token's file."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import httpx
import pytest

from spandial_api.auth import read_or_make_token
from spandial_api.rules import RuleBook
from tests.spandial_api.conftest import TOKEN
from tests.spandial_api.fake_node import FakeNode


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.anyio
@pytest.mark.parametrize("method", ["PUT", "DELETE"])
@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer wrong",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Basic {TOKEN}",
        TOKEN,
        "Bearer ü",
    ],
)
async def test_a_remote_writer_without_the_token_is_told_where_it_is(
    remote: httpx.AsyncClient, node: FakeNode, tmp_path: Path, method: str, authorization: str | None
) -> None:
    headers = {} if authorization is None else {b"Authorization": authorization.encode()}
    answer = await remote.request(method, "/sampling", params={"rate": "30"}, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert "Authorization: Bearer <token>" in answer.json()["detail"]
    assert str(tmp_path / "token") in answer.json()["detail"]
    assert TOKEN not in answer.text
    assert node.applied == [RuleBook()]


@pytest.mark.anyio
@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_a_remote_writer_with_the_token_may_write(remote: httpx.AsyncClient, scheme: str) -> None:
    headers = {"Authorization": f"{scheme} {TOKEN}"}
    assert (await remote.put("/sampling", params={"rate": "30"}, headers=headers)).status_code == 200
    assert (await remote.delete("/sampling", headers=headers)).status_code == 200


@pytest.mark.anyio
async def test_a_writer_on_the_trusted_listener_needs_no_token(local: httpx.AsyncClient) -> None:
    assert (await local.put("/sampling", params={"rate": "30"})).status_code == 200


@pytest.mark.anyio
async def test_trust_is_the_listeners_and_cannot_be_claimed(remote: httpx.AsyncClient) -> None:
    claims = {"spandial.trusted": "true", "X-Forwarded-For": "127.0.0.1", "X-Real-IP": "unix"}
    answer = await remote.put("/sampling", params={"rate": "30"}, headers=claims)
    assert answer.status_code == 401


@pytest.mark.anyio
@pytest.mark.parametrize(
    "path", ["/sampling", "/targets", "/stats", "/entries", "/metrics", "/healthz", "/docs", "/openapi.json"]
)
async def test_reading_needs_no_token(remote: httpx.AsyncClient, path: str) -> None:
    assert (await remote.get(path)).status_code == 200


def test_the_first_start_makes_a_token_that_only_its_owner_reads(tmp_path: Path) -> None:
    path = tmp_path / "token"
    before = os.umask(0)
    try:
        token = read_or_make_token(path)
    finally:
        os.umask(before)
    assert len(token) >= 32
    assert mode_of(path) == 0o600


def test_later_starts_have_the_same_token(tmp_path: Path) -> None:
    path = tmp_path / "token"
    assert read_or_make_token(path) == read_or_make_token(path)


def test_two_nodes_have_different_tokens(tmp_path: Path) -> None:
    assert read_or_make_token(tmp_path / "one") != read_or_make_token(tmp_path / "other")


def test_a_token_that_somebody_chose_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("  chosen-by-hand \n")
    path.chmod(0o640)
    assert read_or_make_token(path) == "chosen-by-hand"
    assert mode_of(path) == 0o640


@pytest.mark.parametrize("content", ["", "\n", " " * 500])
def test_a_file_left_empty_is_filled_for_its_owner_only(tmp_path: Path, content: str) -> None:
    path = tmp_path / "token"
    path.write_text(content)
    path.chmod(0o644)
    token = read_or_make_token(path)
    assert len(token) >= 32
    assert read_or_make_token(path) == token
    assert mode_of(path) == 0o600


def test_a_token_that_cannot_be_stored_is_an_error_of_its_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=str(tmp_path / "none" / "token")):
        read_or_make_token(tmp_path / "none" / "token")
