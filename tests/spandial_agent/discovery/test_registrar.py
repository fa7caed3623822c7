"""The application-facing socket."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spandial import abi
from spandial.abi import Flag, Mode, encode_word
from spandial.labels import Labels
from spandial_agent.processes import proc as processes
from tests.agent_process import eventually
from tests.spandial_agent.conftest import DEFAULT
from tests.spandial_agent.running_registrar import Peer, RunningRegistrar, hello

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_fields = st.sampled_from(["abi", "service", "version", "env", "default", "pid", "attributes"])


def test_every_process_may_connect(running: RunningRegistrar) -> None:
    status = running.path.stat()
    assert stat.S_ISSOCK(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o666


def test_a_process_gets_its_row_the_lease_and_three_descriptors(running: RunningRegistrar, peer: Peer) -> None:
    answer = peer.register(hello())
    assert (answer["abi"], answer["lease_ms"]) == (abi.ABI, 10_000)
    assert len(peer.descriptors) == 3
    row = peer.map_table()[answer["row"] * abi.ROW_WORDS :][: abi.ROW_WORDS]
    assert row[abi.EntryKind.HTTP] == DEFAULT
    assert row[abi.WORD_OWNER] & 0xFFFFFFFF == os.getpid()
    assert os.fstat(peer.descriptors[2]).st_size == abi.SHEET_SIZE
    page = peer.map_page()
    page[abi.PAGE_COUNTS + 3] = 42
    assert running.pages()[0].read()[3] == 42


def test_hooks_of_each_version_that_is_spoken_are_served_and_shown(
    running: RunningRegistrar, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert abi.SPOKEN[0] == abi.ABI
    monkeypatch.setattr(abi, "SPOKEN", (7, 6))
    with closing(running.peer()) as older:
        assert older.register(hello(abi=6, hook="0.9"))["abi"] == 6
        assert peer.register(hello(abi=7))["abi"] == 7
        assert [page.hook for page in running.pages()] == [(6, "0.9"), (7, "")]
        with closing(running.peer()) as oldest:
            assert "speaks ABI version 7 or 6, the process 5" in oldest.register(hello(abi=5))["error"]


def test_of_its_default_a_process_says_the_rate_alone(running: RunningRegistrar, peer: Peer) -> None:
    flags = abi.Flag.OPERATIONS | abi.Flag.EMIT | abi.Flag.THIN | abi.Mode.STRICT
    answer = peer.register(hello(default=DEFAULT | flags))
    assert peer.map_table()[answer["row"] * abi.ROW_WORDS] == DEFAULT


def test_the_pid_is_the_sockets_and_not_the_messages(running: RunningRegistrar) -> None:
    connect = "import socket, sys; s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.connect(sys.argv[1]);"
    talk = "s.send(sys.argv[2].encode()); s.recv(9999); print('done', flush=True); sys.stdin.read()"
    message = hello(pid=os.getpid()).decode()
    with subprocess.Popen(
        [sys.executable, "-c", connect + talk, running.path, message],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"done\n"
        [target] = list(running.targets)
        assert target.pid == child.pid
        child.communicate()


def test_its_labels_are_those_it_says(running: RunningRegistrar, peer: Peer) -> None:
    peer.register(hello(service="café", env="", version="v 2"))
    [target] = list(running.targets)
    assert target.labels == Labels("café", "v 2", "")


def test_labels_may_be_left_out(running: RunningRegistrar, peer: Peer) -> None:
    peer.register(json.dumps({"abi": abi.ABI, "default": DEFAULT}).encode())
    [target] = list(running.targets)
    assert target.labels == Labels()


def test_of_its_default_only_the_rate_is_taken(running: RunningRegistrar, peer: Peer) -> None:
    peer.register(hello(default=encode_word(5, Mode.STRICT, emit=True, thin=True)))
    [target] = list(running.targets)
    assert target.default == encode_word(5)


_NOT_JSON = [b"{", b"\x00", b"\xff\xfe", b"nonsense", b'{"abi": 1', b"[" * 60_000, b"9" * 60_000]
_NO_REGISTRATIONS = [
    b"null",
    b"[]",
    b'"hello"',
    b"1",
    b"{}",
    hello(abi=None),
    hello(abi=abi.ABI + 1),
    hello(abi=str(abi.ABI)),
    hello(hook=7),
    hello(hook="1" * 65),
    hello(hook="1\n2"),
    hello(abi=["x" * 60_000]),
    hello(service=7),
    hello(service=None),
    hello(service="x" * 256),
    hello(env=["gray"]),
    hello(version="a\nb"),
    hello(service="a\x1b[2Jb"),
    hello(service="\ud800"),
    hello(default=None),
    hello(default="100"),
    hello(default=True),
    hello(default=1e20),
    hello(default=-1),
    hello(default=1 << 64),
    hello(default=DEFAULT & ~Flag.VALID),
    hello(padding="x" * 140_000),
]


@pytest.mark.parametrize("message", _NOT_JSON + _NO_REGISTRATIONS, ids=lambda message: repr(message[:60]))
def test_what_is_no_registration_is_refused_with_a_reason(
    running: RunningRegistrar, peer: Peer, message: bytes
) -> None:
    answer = peer.register(message)
    assert answer["error"]
    assert len(answer["error"]) < 500
    assert answer["abi"] == abi.ABI
    assert peer.descriptors == []
    assert peer.is_closed_by_the_agent()
    assert len(running.targets) == 0
    assert running.registrar.refused == 1


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(min_size=1, max_size=200)
    | _json.map(lambda value: json.dumps(value).encode())
    | st.dictionaries(_fields, _json, max_size=3).map(lambda fields: hello(**fields))
    | st.integers(0, 150).map(lambda length: hello()[:length] or b"{")
)
def test_any_message_is_answered(running: RunningRegistrar, message: bytes) -> None:
    peer = running.peer()
    answer = peer.register(message)
    if "error" in answer:
        assert peer.descriptors == []
    else:
        assert abi.DEFAULT_ROW <= answer["row"] < abi.ROWS
        assert len(peer.descriptors) == 3
    peer.close()
    assert running.raised == []


@pytest.mark.parametrize("depth", range(300, 1100, 50))
def test_any_depth_of_json_is_answered(running: RunningRegistrar, peer: Peer, depth: int) -> None:
    nested = "[" * depth + "]" * depth
    assert peer.register(f'{{"abi": {nested}}}'.encode())["error"]


def test_a_process_that_the_agent_cannot_see_is_refused(
    running: RunningRegistrar, peer: Peer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_PROC", tmp_path)
    assert f"process {os.getpid()} cannot be seen" in peer.register(hello())["error"]


def test_a_process_registers_so_many_times_and_no_more(running: RunningRegistrar) -> None:
    peers = [running.peer() for _ in range(9)]
    answers = [peer.register(hello()) for peer in peers]
    assert len({answer["row"] for answer in answers[:8]}) == 1
    assert "has registered 8 times already" in answers[8]["error"]
    peers[0].close()
    eventually(lambda: len(running.pages()) == 7, "one hook is gone")
    again = running.peer()
    assert "row" in again.register(hello())
    for peer in [*peers, again]:
        peer.close()


def test_the_end_of_the_connection_unhooks_and_keeps_the_row(running: RunningRegistrar, peer: Peer) -> None:
    row = peer.register(hello())["row"]
    [target] = list(running.targets)
    assert target.hooked
    peer.close()
    eventually(lambda: not target.hooked, "the target is unhooked")
    assert list(running.targets) == [target]
    again = running.peer()
    assert again.register(hello())["row"] == row
    again.close()


def test_what_a_registered_process_sends_further_changes_nothing(running: RunningRegistrar, peer: Peer) -> None:
    peer.register(hello())
    for _ in range(50):
        peer.socket.send(hello(service="another"))
    running.publish()
    [target] = list(running.targets)
    assert target.labels.service == "checkout"
    assert len(target.pages) == 1


def test_a_process_that_goes_before_its_answer_leaves_nothing(running: RunningRegistrar) -> None:
    for message in (hello(), b"{", None):
        peer = running.peer()
        if message is not None:
            peer.socket.send(message)
        peer.close()
    eventually(lambda: not running.pages(), "no hook is left")


def test_the_agents_end_closes_the_connections_and_removes_the_socket(running: RunningRegistrar, peer: Peer) -> None:
    peer.register(hello())
    running.call(running.registrar.close)
    assert peer.is_closed_by_the_agent()
    assert not running.path.exists()
    assert running.pages() == []
    running.call(running.registrar.start)


def test_a_socket_file_that_a_killed_agent_left_is_replaced(running: RunningRegistrar, tmp_path: Path) -> None:
    path = tmp_path / "left.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as left:
        left.bind(str(path))
    other = RunningRegistrar(path, running.table, running.targets)
    peer = other.peer()
    assert "row" in peer.register(hello())
    peer.close()
    other.stop()


def test_the_longest_labels_in_any_alphabet_are_taken(running: RunningRegistrar, peer: Peer) -> None:
    attributes = {f"{number:02}{'漢' * 253}": "語" * 255 for number in range(32)}
    assert len(hello(attributes=attributes)) > 65536
    assert "row" in peer.register(hello(attributes=attributes))
    labels = {target.labels.others for target in running.targets}
    assert labels == {tuple(attributes.items())}
