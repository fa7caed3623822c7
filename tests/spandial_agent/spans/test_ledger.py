"""What spans were lost at the end, over restarts, on disks that are damaged or not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spandial_agent.spans.ledger import Ledger


def test_losses_add_up_over_restarts(tmp_path: Path) -> None:
    for held, before in ((3, 0), (0, 3), (7, 3), (0, 10)):
        ledger = Ledger(tmp_path / "spans")
        assert ledger.before == before
        ledger.note(100)
        ledger.note(held)
        ledger.close()
    assert (tmp_path / "spans").stat().st_mode & 0o777 == 0o600


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(content=st.binary(max_size=100))
def test_a_damaged_file_counts_nothing_and_is_used_again(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "spans"
    path.write_bytes(content)
    ledger = Ledger(path)
    before = ledger.before
    ledger.note(5)
    ledger.close()
    again = Ledger(path)
    assert again.before in (before + 5, 0)  # 0: something is behind the numbers
    again.close()


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
    ledger.note(5)
    ledger.close()
    assert ledger.before == 0
