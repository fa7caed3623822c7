"""Folders and files that nobody else can have written or swapped."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from spandial_api.folders import NotOurs, check_file, make_folder, open_file, open_folder, remove_readable

SOMEBODY = 64321
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def opened(path: Path) -> bool:
    os.close(open_folder(path))
    return True


def refusal(path: Path, open_it: Callable[[Path], int] = open_folder) -> str:
    with pytest.raises(NotOurs) as caught:
        os.close(open_it(path))
    return str(caught.value)


def test_what_is_missing_is_made_and_the_umask_says_nothing_about_it(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        os.close(make_folder(tmp_path / "a" / "run", 0o755))
        os.close(make_folder(tmp_path / "b" / "state", 0o700))
    finally:
        os.umask(before)
    assert [mode_of(tmp_path / name) for name in ("a", "a/run", "b", "b/state")] == [0o755, 0o755, 0o755, 0o700]


@pytest.mark.parametrize("mode", [0o700, 0o750, 0o755])
def test_a_state_folder_that_others_could_read_is_tightened(tmp_path: Path, mode: int) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(mode)
    os.close(make_folder(tmp_path / "state", 0o700))
    assert mode_of(tmp_path / "state") == 0o700


def test_a_folder_that_is_tighter_than_it_would_be_made_is_left_so(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(0o700)
    os.close(make_folder(tmp_path / "run", 0o755))
    assert mode_of(tmp_path / "run") == 0o700


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777, 0o1777])
def test_one_that_others_could_write_is_refused_with_what_to_do(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    folder.chmod(mode)
    for open_it in (open_folder, lambda path: make_folder(path, 0o700)):
        said = refusal(folder, open_it)
        assert f"{folder} has mode {mode:04o}" in said
        assert f"'chmod go-w {folder}'" in said
    folder.chmod(0o700)  # in substance what it says
    assert opened(folder)


@as_root
def test_somebody_elses_is_refused_with_what_to_do(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    os.chown(folder, SOMEBODY, SOMEBODY)
    said = refusal(folder)
    assert f"{folder} belongs to uid {SOMEBODY}" in said
    assert f"'chown 0 {folder}'" in said


@as_root
def test_one_below_somebody_elses_is_refused_since_he_could_swap_it(tmp_path: Path) -> None:
    folder = tmp_path / "his" / "deeper" / "state"
    folder.mkdir(parents=True)
    os.chown(tmp_path / "his", SOMEBODY, SOMEBODY)
    assert f"{tmp_path}/his belongs to uid {SOMEBODY}, who could swap" in refusal(folder)


def test_one_below_a_folder_that_everybody_writes_is_refused_unless_names_are_kept_there(tmp_path: Path) -> None:
    folder = tmp_path / "everybodys" / "state"
    folder.mkdir(parents=True)
    folder.parent.chmod(0o777)
    assert f"'chmod go-w {folder.parent}'" in refusal(folder)
    folder.parent.chmod(0o1777)  # such as /tmp
    assert opened(folder)


@as_root
def test_a_name_that_somebody_made_where_everybody_may_is_refused(tmp_path: Path) -> None:
    everybodys = tmp_path / "everybodys"
    everybodys.mkdir()
    everybodys.chmod(0o1777)
    (tmp_path / "elsewhere").mkdir()
    (everybodys / "spandial").symlink_to(tmp_path / "elsewhere")
    os.chown(everybodys / "spandial", SOMEBODY, SOMEBODY, follow_symlinks=False)
    assert f"{everybodys}/spandial belongs to uid {SOMEBODY}: remove it" in refusal(everybodys / "spandial")


def test_a_link_that_nobody_else_could_make_is_followed(tmp_path: Path) -> None:
    """A service of systemd's with DynamicUser= has one in /var/lib; /var/run is one."""
    (tmp_path / "private" / "spandial").mkdir(parents=True)
    (tmp_path / "spandial").symlink_to("private/spandial")
    (tmp_path / "again").symlink_to(tmp_path / "spandial")
    os.close(make_folder(tmp_path / "again", 0o700))
    assert mode_of(tmp_path / "private" / "spandial") == 0o700
    (tmp_path / "private").chmod(0o777)
    assert f"{tmp_path}/private has mode 0777" in refusal(tmp_path / "again")


def test_links_in_a_circle_have_an_end(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert "more than 40 symbolic links" in refusal(tmp_path / "a")


def in_folder(folder: Path, name: str, flags: int) -> int:
    opened_folder = open_folder(folder)
    try:
        return open_file(name, flags, opened_folder, folder / name)
    finally:
        os.close(opened_folder)


def test_a_file_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        os.close(in_folder(tmp_path, "lock", os.O_RDWR | os.O_CREAT))
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "lock") == 0o600


def test_a_link_is_not_followed_and_what_it_leads_to_not_emptied(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("root's own")
    (tmp_path / "lock").symlink_to(precious)
    with pytest.raises(NotOurs, match=f"{tmp_path}/lock is a symbolic link, .* remove it"):
        in_folder(tmp_path, "lock", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    with pytest.raises(NotOurs, match="is a symbolic link"):
        check_file(tmp_path / "lock")
    assert precious.read_text() == "root's own"


def test_a_file_that_is_none_is_refused_without_waiting_for_somebody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lock", 0o600)
    with pytest.raises(NotOurs, match="no regular file"):
        in_folder(tmp_path, "lock", os.O_RDWR)


@as_root
def test_somebody_elses_file_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    path.write_text("{}")
    os.chown(path, SOMEBODY, SOMEBODY)
    for open_it in (lambda: in_folder(tmp_path, path.name, os.O_RDWR | os.O_TRUNC), lambda: check_file(path)):
        with pytest.raises(NotOurs, match=f"{path} belongs to uid {SOMEBODY}: .*'chown 0 {path}'"):
            open_it()
    assert path.read_text() == "{}"


def test_a_file_of_an_older_version_is_tightened(tmp_path: Path) -> None:
    path = tmp_path / "rules.sqlite"
    check_file(path)  # it is not there
    path.write_text("")
    path.chmod(0o644)
    check_file(path)
    assert mode_of(path) == 0o600


def test_only_what_others_can_read_is_removed(tmp_path: Path) -> None:
    for mode, left in ((0o644, False), (0o600, True)):
        path = tmp_path / "shm"
        path.write_text("")
        path.chmod(mode)
        remove_readable(path)
        assert path.exists() is left
    path.unlink()
    remove_readable(path)
