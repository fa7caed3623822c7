"""bench/compare runs the tree beside itself, of which nothing is to be said."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.kernel, pytest.mark.e2e]

ROOT = Path(__file__).parents[2]


def test_the_tree_is_like_itself(tmp_path: Path) -> None:
    raw = tmp_path / "pairs.json"
    command = [sys.executable, str(ROOT / "bench" / "compare"), str(ROOT), "--quick", "--only", "decision"]
    done = subprocess.run([*command, "--json", str(raw)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith(("root,", "remote parent"))]
    assert lines
    assert all("cannot tell" in line for line in lines)
    assert "Decided differently" not in done.stdout
    quantities = json.loads(raw.read_text())["quantities"]
    assert len(quantities) == len(lines)
    assert all(len(quad["old"]) == len(quad["new"]) == 2 for each in quantities for quad in each["turns"][0])


def test_what_is_no_checkout_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "bench" / "compare"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2
    assert f"{tmp_path} is no checkout of spandial" in done.stderr
