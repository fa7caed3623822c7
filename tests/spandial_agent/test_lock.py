"""One agent in a run directory; nobody else can stand in its way, and nothing of somebody else's is believed."""

from __future__ import annotations

import contextlib
import fcntl
import json
import multiprocessing
import os
import socket
import stat
import subprocess
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from spandial_agent.errors import SpandialError
from spandial_agent.lock import only_agent
from spandial_api.tokens import digest_of
from tests.agent_process import AgentProcess
from tests.spandial_agent.command import run

SOMEBODY = 64321
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")

_HOLD = """
import fcntl, os, sys
fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def open_path(tmp_path: Path) -> Iterator[Path]:
    """A folder that everybody can get to, as /run is."""
    changed = [
        folder
        for folder in (tmp_path, *tmp_path.parents)
        if folder.is_relative_to("/tmp") and folder.stat().st_uid == os.geteuid()
    ]
    before = [stat.S_IMODE(folder.stat().st_mode) for folder in changed]
    for folder in changed:
        folder.chmod(stat.S_IMODE(folder.stat().st_mode) | 0o055)
    yield tmp_path
    for folder, mode in zip(changed, before):
        folder.chmod(mode)


@contextlib.contextmanager
def held_by_somebody(path: Path) -> Iterator[str]:
    """What another user says who tries to lock a file for as long as this lasts."""
    with subprocess.Popen(
        ["/usr/bin/python3", "-c", _HOLD, str(path)],
        user=SOMEBODY,
        group=SOMEBODY,
        extra_groups=[],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip() or "ended"
        process.kill()


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@as_root
@pytest.mark.parametrize("name", ["run/lock", "state/rules.sqlite", "state/rules.sqlite-shm", "state"])
def test_nobody_else_can_lock_what_an_agent_needs(open_path: Path, name: str) -> None:
    agent = AgentProcess(open_path, SPANDIAL_TABLE="memfd")
    agent.start()
    try:
        agent.set(30)
        with held_by_somebody(open_path / name) as said:
            assert said != "held"
    finally:
        agent.stop()


@as_root
def test_a_lock_that_an_older_version_left_open_to_everybody_is_no_obstacle(open_path: Path) -> None:
    run_dir = open_path / "run"
    run_dir.mkdir()
    (run_dir / "lock").touch()
    run_dir.chmod(0o755)
    (run_dir / "lock").chmod(0o644)
    with held_by_somebody(run_dir / "lock") as said:
        assert said == "held"
        with only_agent(run_dir, open_path / "state"):
            assert mode_of(run_dir / "lock") == 0o600
            with (
                pytest.raises(SpandialError, match="another agent is running"),
                only_agent(run_dir, open_path / "state"),
            ):
                pass


def test_an_older_version_that_still_serves_is_an_agent(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    with open(run_dir / "lock", "w") as lock, socket.socket(socket.AF_UNIX) as serving:
        os.fchmod(lock.fileno(), 0o644)
        fcntl.flock(lock, fcntl.LOCK_EX)
        serving.bind(str(run_dir / "api.sock"))
        serving.listen(1)
        with pytest.raises(SpandialError, match="another agent is running"), only_agent(run_dir, tmp_path / "state"):
            pass


def test_folders_are_made_with_the_modes_that_others_need(tmp_path: Path) -> None:
    with only_agent(tmp_path / "run", tmp_path / "state"):
        assert (mode_of(tmp_path / "run"), mode_of(tmp_path / "state")) == (0o755, 0o700)
        assert mode_of(tmp_path / "run" / "lock") == 0o600


def test_what_systemd_makes_serves(tmp_path: Path) -> None:
    """RuntimeDirectory= with 0755, StateDirectory= with 0755 (its default), of the service's user."""
    for name in ("run", "state"):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(0o755)
    with only_agent(tmp_path / "run", tmp_path / "state"):
        assert (mode_of(tmp_path / "run"), mode_of(tmp_path / "state")) == (0o755, 0o700)


def test_files_are_their_owners_alone_whatever_the_umask_was(open_path: Path) -> None:
    before = os.umask(0)
    try:
        agent = AgentProcess(open_path, SPANDIAL_TABLE="memfd")
        agent.start()
        agent.set(30)
    finally:
        os.umask(before)
    modes = {path: mode_of(path) for path in (*agent.run_dir.iterdir(), *agent.state_dir.iterdir())}
    agent.stop()
    assert modes.pop(agent.run_dir / "app.sock") == 0o666
    assert modes.pop(agent.run_dir / "api.sock") in (0o600, 0o660)
    assert len(modes) >= 5
    assert set(modes.values()) == {0o600}, modes


@as_root
@pytest.mark.parametrize("name", ["run", "state"])
def test_an_agent_believes_nothing_in_a_folder_of_somebody_elses(open_path: Path, name: str) -> None:
    precious = open_path / "precious"
    precious.write_text("root's own")
    folder = open_path / name
    folder.mkdir()
    (folder / "lock").symlink_to(precious)
    token = {"name": "evil", "sha256": digest_of("x" * 43).hex(), "scope": "admin"}
    (folder / "tokens.json").write_text(json.dumps({"tokens": [token]}))
    os.chown(folder, SOMEBODY, SOMEBODY)
    settings = {
        "SPANDIAL_RUN_DIR": str(open_path / "run"),
        "SPANDIAL_STATE_DIR": str(open_path / "state"),
        "SPANDIAL_PORT": "0",
        "SPANDIAL_TABLE": "memfd",
    }
    _, err = run(settings, "agent", code=1)
    assert f"{folder} belongs to uid {SOMEBODY}" in err
    assert f"'chown 0 {folder}'" in err
    assert precious.read_text() == "root's own"
    if name == "state":
        _, err = run(settings, "token", "list", code=1)
        assert f"{folder} belongs to uid {SOMEBODY}" in err


def _use_as_somebody(own: Path, said: Connection) -> None:
    os.setgroups([])
    os.setresgid(SOMEBODY, SOMEBODY, SOMEBODY)
    os.setresuid(SOMEBODY, SOMEBODY, SOMEBODY)
    with only_agent(own / "run", own / "state"):
        said.send([mode_of(own / name) for name in ("run", "state", "run/lock")])


@as_root
def test_an_agent_that_is_not_root_serves_in_folders_of_its_own(open_path: Path) -> None:
    own = open_path / "own"
    own.mkdir()
    os.chown(own, SOMEBODY, SOMEBODY)
    fork = multiprocessing.get_context("fork")
    told, said = fork.Pipe(duplex=False)
    user = fork.Process(target=_use_as_somebody, args=(own, said))
    user.start()
    said.close()
    assert told.recv() == [0o755, 0o700, 0o600]
    user.join()
