"""What spans were lost at the end, over restarts, on disks that are damaged or not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from spandial_agent.spans import ledger as ledger_module
from spandial_agent.spans.ledger import Ledger
from tests.agent_process import eventually


def test_losses_add_up_over_restarts(tmp_path: Path) -> None:
    for held, before in ((3, 0), (0, 3), (7, 3), (0, 10)):
        ledger = Ledger(tmp_path / "spans")
        assert (ledger.before, ledger.killed) == (before, 0)
        ledger.note(100)
        ledger.close(held)
    assert (tmp_path / "spans").stat().st_mode & 0o777 == 0o600


def test_what_a_killed_agent_held_is_told_and_that_it_was_killed(tmp_path: Path) -> None:
    for held, before, killed in ((3, 0, 0), (0, 3, 1), (7, 3, 2)):
        ledger = Ledger(tmp_path / "spans")
        assert (ledger.before, ledger.killed) == (before, killed)
        ledger.note(held)
    Ledger(tmp_path / "spans").close(5)
    with capture_logs() as logs:
        last = Ledger(tmp_path / "spans")
    assert (last.before, last.killed) == (15, 3)
    assert [line["event"] for line in logs] == ["spans were lost when agents ended"]


def test_what_is_held_is_written_down_at_once_where_there_is_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "_EVERY_S", 3600.0)
    held = [0]
    ledger = Ledger(tmp_path / "spans")
    ledger.keep(lambda: held[0])
    held[0] = 5
    ledger.note_soon()
    eventually(lambda: int((tmp_path / "spans").read_text().split()[1]) == 5, "it is written down")
    ledger.close(0)


def test_what_is_held_is_written_down_all_the_while(tmp_path: Path) -> None:
    held = [0]
    ledger = Ledger(tmp_path / "spans")
    ledger.keep(lambda: held[0])
    for held[0] in (5, 70_000, 2):
        eventually(lambda: int((tmp_path / "spans").read_text().split()[1]) == held[0], "it is written down")
    ledger.close(1)
    assert Ledger(tmp_path / "spans").before == 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(content=st.binary(max_size=100))
def test_a_damaged_file_counts_nothing_and_is_used_again(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "spans"
    path.write_bytes(content)
    ledger = Ledger(path)
    before = ledger.before
    ledger.close(5)
    again = Ledger(path)
    assert again.before in (before + 5, 0)  # 0: something is behind the numbers
    again.close(0)


def test_a_symlink_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("secret")
    (tmp_path / "spans").symlink_to(tmp_path / "other")
    ledger = Ledger(tmp_path / "spans")
    ledger.note(5)
    assert (tmp_path / "other").read_text() == "secret"


@pytest.mark.parametrize("kind", ["missing", "fifo", "folder"])
def test_where_nothing_can_be_written_nothing_is_raised(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "spans"
    if kind == "missing":
        path = tmp_path / "nowhere" / "spans"
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    ledger = Ledger(path)
    ledger.keep(lambda: 7)
    ledger.note(5)
    ledger.close(3)
    assert ledger.before == 0


def test_a_longer_file_is_cut_and_believed_from_then_on(tmp_path: Path) -> None:
    path = tmp_path / "spans"
    path.write_text("9" * 200)
    Ledger(path).close(7)
    assert Ledger(path).before == 7
    path.write_text(" ".join(["9" * 20, "9" * 20, "0" * 20, "1".zfill(20)]) + "\n")
    Ledger(path).close(3)
    assert Ledger(path).before > 0
