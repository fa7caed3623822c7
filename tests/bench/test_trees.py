"""Another checkout is what it is given as, or refused with a reason."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from bench.trees import HERE, NotATree, Tree


def make(root: Path, *packages: str) -> Tree:
    """A checkout that has what bench/compare starts, and these packages, such as `hook/spandial`."""
    for package in ("bench", "tests", *packages):
        (root / package).mkdir(parents=True)
        (root / package / "__init__.py").touch()
    for program in ("switch", "spinner", "crowd"):
        (root / "bench" / f"{program}.py").touch()
    return Tree(root)


def test_this_checkout_imports_its_own_packages() -> None:
    HERE.check()


def test_packages_are_found_wherever_a_tree_has_them(tmp_path: Path) -> None:
    tree = make(tmp_path, "hook/spandial", "agent/spandial_agent", "api/spandial_api")
    tree.check()
    folders = [str(tmp_path / folder) for folder in ("hook", "agent", "api")]
    assert tree.environment["PYTHONPATH"].split(os.pathsep) == [*folders, str(tmp_path)]


def test_a_folder_without_the_programs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotATree, match=r"no checkout of spandial.*no bench/switch.py.*git worktree add"):
        Tree(tmp_path / "nowhere").check()


def test_a_tree_that_would_run_another_ones_packages_is_refused(tmp_path: Path) -> None:
    # They are installed where this test runs.
    with pytest.raises(NotATree, match=r"imports spandial_agent from .* another tree"):
        make(tmp_path, "hook/spandial", "api/spandial_api").check()


def test_a_tree_that_cannot_be_imported_is_refused_with_the_reason(tmp_path: Path) -> None:
    tree = make(tmp_path, "agent/spandial", "agent/spandial_agent", "api/spandial_api")
    (tmp_path / "agent" / "spandial" / "__init__.py").write_text("import no_such_dependency\n")
    with pytest.raises(NotATree, match=r"No module named 'no_such_dependency'.*--old-python"):
        tree.check()
