"""Whom a hook obeys: root, its own user, who is outside of its container, and whom a file of root's names."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from spandial.abi import encode_word
from spandial.peer import UID_FILE, Stranger, check_peer
from tests.agent_process import eventually
from tests.spandial.applications import Application
from tests.spandial.fake_agent import FakeAgent, answer, page, sheet, table

pytestmark = pytest.mark.kernel  # root, to be others

ROOT, SOMEBODY, OTHER, NOBODY = 0, 64321, 64322, 65534


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """A run directory that everybody may enter."""
    with tempfile.TemporaryDirectory(prefix="spandial-run-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


def listening(run_dir: Path, uid: int) -> socket.socket:
    """A listener on the agent's socket that belongs to a user."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(run_dir / "app.sock"))
    os.chmod(run_dir / "app.sock", 0o666)
    os.seteuid(uid)
    try:
        listener.listen(4)
    finally:
        os.seteuid(ROOT)
    return listener


def obeys(run_dir: Path, *, peer: int, own: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """Nothing where a process of a user obeys a listener of another; else what it says."""
    with listening(run_dir, peer), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(str(run_dir / "app.sock"))
        with monkeypatch.context() as patched:
            patched.setattr(os, "geteuid", lambda: own)
            try:
                check_peer(connection, str(run_dir))
            except Stranger as stranger:
                return str(stranger)
    return ""


@pytest.mark.parametrize(("peer", "own"), [(ROOT, ROOT), (ROOT, SOMEBODY), (ROOT, NOBODY), (SOMEBODY, SOMEBODY)])
def test_root_and_the_processes_own_user_are_obeyed(
    peer: int, own: int, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert obeys(run_dir, peer=peer, own=own, monkeypatch=monkeypatch) == ""


@pytest.mark.parametrize(("peer", "own"), [(SOMEBODY, ROOT), (SOMEBODY, OTHER), (NOBODY, NOBODY), (NOBODY, ROOT)])
def test_another_user_is_not_obeyed_nor_one_who_may_be_anybody(
    peer: int, own: int, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = obeys(run_dir, peer=peer, own=own, monkeypatch=monkeypatch)
    assert f"process {os.getpid()} of user {peer} listens there" in said


def put_file(run_dir: Path, text: str = f"{SOMEBODY}\n", *, owner: int = ROOT, mode: int = 0o644) -> None:
    path = run_dir / UID_FILE
    path.write_text(text)
    os.chown(path, owner, owner)
    os.chmod(path, mode)


def put_link(run_dir: Path) -> None:
    put_file(run_dir)
    (run_dir / UID_FILE).rename(run_dir / "elsewhere")
    (run_dir / UID_FILE).symlink_to("elsewhere")


def put_second_name(run_dir: Path) -> None:
    put_file(run_dir)
    (run_dir / "second").hardlink_to(run_dir / UID_FILE)


def test_whom_a_file_of_roots_names_is_obeyed(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_file(run_dir)
    assert obeys(run_dir, peer=SOMEBODY, own=OTHER, monkeypatch=monkeypatch) == ""


FILES: dict[str, Callable[[Path], object]] = {
    "others than root can write it": lambda run_dir: put_file(run_dir, owner=SOMEBODY),
    "others than root can write": lambda run_dir: put_file(run_dir, mode=0o664),
    "others than root can": lambda run_dir: put_file(run_dir, mode=0o646),
    "it holds no number": lambda run_dir: put_file(run_dir, "somebody"),
    "it holds no": lambda run_dir: put_file(run_dir, "\u0664\u0662"),
    f"user {OTHER}": lambda run_dir: put_file(run_dir, f"{OTHER}"),
    "Too many levels of symbolic links": put_link,
    "it is no file of its own": put_second_name,
    "it is no file": lambda run_dir: (run_dir / UID_FILE).mkdir(),
    "it is": lambda run_dir: os.mkfifo(run_dir / UID_FILE),
    "No such file": lambda run_dir: None,
}


@pytest.mark.parametrize("why", FILES)
def test_a_file_that_is_not_roots_alone_or_names_nobody_is_not_believed(
    why: str, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FILES[why](run_dir)
    said = obeys(run_dir, peer=SOMEBODY, own=ROOT, monkeypatch=monkeypatch)
    assert f"{UID_FILE} names: {why}" in said


def test_a_file_cannot_name_who_may_be_anybody(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_file(run_dir, f"{NOBODY}")
    assert "may be any user" in obeys(run_dir, peer=NOBODY, own=ROOT, monkeypatch=monkeypatch)


def proper(connection: socket.socket, _hello: dict[str, Any]) -> None:
    descriptors = [table(encode_word(70)), page(), sheet()]
    socket.send_fds(connection, [answer()], descriptors)
    for descriptor in descriptors:
        os.close(descriptor)


def test_a_stranger_in_the_run_directory_gets_nothing_and_one_line_says_who_he_is(run_dir: Path) -> None:
    with FakeAgent(run_dir, proper, uid=SOMEBODY) as agent, Application(run_dir, DEFAULT="30%") as application:
        eventually(lambda: len(agent.connections) >= 3, "it has tried again")
        application.report()
        assert (application.end(), application.rates()) == (0, [30])
        assert agent.hellos == []
        [line] = application.errors
        assert "nobody at" in line
        assert f"of user {SOMEBODY} listens there; obeyed are root" in line


def test_when_a_stranger_has_gone_the_agent_is_obeyed(run_dir: Path) -> None:
    with Application(run_dir, DEFAULT="30%") as application:
        with FakeAgent(run_dir, proper, uid=SOMEBODY) as stranger:
            eventually(lambda: stranger.connections, "it has looked who that is")
        (run_dir / "app.sock").unlink()
        with FakeAgent(run_dir, proper):
            assert application.obeys(70)
            assert application.end() == 0


def from_inside(run_dir: Path, unshare: list[str], peer: int, user: int | None) -> str:
    """What a process in namespaces of its own says of a listener outside."""
    script = (
        "import socket, sys; from spandial.peer import Stranger, check_peer\n"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.connect(sys.argv[1] + '/app.sock')\n"
        "try: check_peer(s, sys.argv[1]); print('obeyed')\n"
        "except Stranger as stranger: print(stranger)"
    )
    with listening(run_dir, peer):
        done = subprocess.run(
            [*unshare, sys.executable, "-c", script, str(run_dir)],
            capture_output=True,
            text=True,
            user=user,
            extra_groups=None if user is None else [],
        )
    if done.returncode and "unshare" in done.stderr:
        pytest.skip(f"no user namespaces here: {done.stderr}")
    assert done.returncode == 0, done.stderr
    return done.stdout


unshares = pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare is not installed")


@unshares
@pytest.mark.parametrize("user", [None, 100_000], ids=["of root", "hostUsers: false"])
@pytest.mark.parametrize("mapped", [[], ["--map-root-user"]], ids=["no user is known", "its own user is its root"])
def test_a_container_with_users_of_its_own_obeys_the_nodes_agent(
    user: int | None, mapped: list[str], run_dir: Path
) -> None:
    unshare = ["unshare", "--user", "--pid", "--fork", *mapped]
    assert from_inside(run_dir, unshare, ROOT, user) == "obeyed\n"


@unshares
def test_in_a_user_namespace_alone_a_user_it_does_not_know_is_not_obeyed(run_dir: Path) -> None:
    unshare = ["unshare", "--user", "--map-root-user"]
    said = from_inside(run_dir, unshare, SOMEBODY, OTHER)
    assert "of user 65534 listens there, which may be any user that this process's user namespace does not know" in said
