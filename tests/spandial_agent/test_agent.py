"""The agent as a process: how it starts, what keeps it from starting, how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from spandial import abi
from spandial.abi import encode_word
from tests.agent_process import PATIENCE_S, AgentProcess, eventually
from tests.spandial_agent.command import run, start
from tests.spandial_agent.running_registrar import Peer, hello

MakeAgent = Callable[..., AgentProcess]


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, str]:
    """Settings of an agent that has not been started."""
    return {
        "SPANDIAL_RUN_DIR": str(tmp_path / "run"),
        "SPANDIAL_STATE_DIR": str(tmp_path / "state"),
        "SPANDIAL_PORT": "0",
        "SPANDIAL_TABLE": "memfd",
    }


def sockets_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.is_socket()]


def established(agent: AgentProcess) -> list[str]:
    """The connections on its API's socket."""
    lines = Path("/proc/net/unix").read_text().splitlines()
    # Flags 0: it does not listen; state 3: it is connected.
    return [
        line
        for line in lines
        if line.endswith(f" {agent.run_dir}/api.sock") and line.split()[3:6:2] == ["00000000", "03"]
    ]


def test_the_command_line_drives_a_running_agent(memfd_agent: AgentProcess) -> None:
    environ = {"PATH": os.environ["PATH"], "OTEL_SERVICE_NAME": "checkout-of-this-test"}
    with subprocess.Popen(["sleep", "60"], env=environ) as child:
        try:
            eventually(lambda: memfd_agent.target(child.pid), "the process is a target")
            out, _ = run(memfd_agent.settings, "set", "30", "--service", "checkout-of-*")
            assert out == "service=checkout-of-*: 30 %, follow, obeyed by 1 target (revision 1)\n"
            out, _ = run(memfd_agent.settings, "targets", "--json")
            [target] = [target for target in json.loads(out) if target["pid"] == child.pid]
            assert target["rates"]["http"]["rate"] == 30.0
        finally:
            child.kill()
    out, _ = run(memfd_agent.settings, "doctor", code=1)
    assert "SPANDIAL_TABLE=memfd" in out
    out, _ = run(memfd_agent.settings, "rm", "--service", "checkout-of-*")
    assert "removed service=checkout-of-*" in out


def test_over_tcp_reading_is_free_and_writing_needs_the_token(memfd_agent: AgentProcess) -> None:
    url = memfd_agent.url
    assert httpx.get(f"{url}/sampling").json() == {"revision": 0, "rules": []}
    assert httpx.put(f"{url}/sampling", params={"rate": "30"}).status_code == 401
    token = (memfd_agent.state_dir / "token").read_text().strip()
    answer = httpx.put(f"{url}/sampling", params={"rate": "30"}, headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 200


def test_state_and_token_are_its_owners_alone(memfd_agent: AgentProcess) -> None:
    assert stat.S_IMODE(memfd_agent.state_dir.stat().st_mode) == 0o700
    assert stat.S_IMODE((memfd_agent.state_dir / "token").stat().st_mode) == 0o600


def test_rules_and_token_survive_a_restart_and_a_kill(memfd_agent: AgentProcess) -> None:
    memfd_agent.set(30, env="gray")
    token = (memfd_agent.state_dir / "token").read_text()
    memfd_agent.stop()
    memfd_agent.start()
    memfd_agent.set(5)
    memfd_agent.kill()
    memfd_agent.start()
    rules = memfd_agent.get("/sampling")
    assert [(rule["selector"], rule["rate"]) for rule in rules["rules"]] == [("env=gray", 30.0), ("default", 5.0)]
    assert rules["revision"] == 2
    assert (memfd_agent.state_dir / "token").read_text() == token


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_cleanly_when_told_to(memfd_agent: AgentProcess, number: signal.Signals) -> None:
    assert sorted(sockets_in(memfd_agent.run_dir)) == ["api.sock", "app.sock"]
    memfd_agent.signal(number)
    assert memfd_agent.stop() == 0
    assert sockets_in(memfd_agent.run_dir) == []
    assert "Traceback" not in memfd_agent.log.read_text()
    assert "stopped" in memfd_agent.log.read_text()


def test_its_end_is_the_end_of_what_somebody_watches(memfd_agent: AgentProcess) -> None:
    watching = start(memfd_agent.settings, "watch")
    with memfd_agent.http.stream("GET", "/entries") as answer:
        eventually(lambda: len(established(memfd_agent)) >= 2, "both watch")
        assert memfd_agent.stop() == 0
        assert list(answer.iter_lines()) == []
    _, err = watching.communicate(timeout=PATIENCE_S)
    assert watching.returncode == 0
    assert err.startswith("the agent has ended the stream")
    assert sockets_in(memfd_agent.run_dir) == []
    assert "Traceback" not in memfd_agent.log.read_text()
    assert "Cancel" not in memfd_agent.log.read_text()


def test_its_end_leaves_processes_their_last_rates_until_the_lease_runs_out(memfd_agent: AgentProcess) -> None:
    memfd_agent.set(30, service="checkout")
    memfd_agent.set(5)
    peer = Peer()
    peer.connect(memfd_agent.run_dir / "app.sock")
    row = peer.register(hello())["row"]
    table = peer.map_table()
    words = table[row * abi.ROW_WORDS : (row + 1) * abi.ROW_WORDS]
    assert memfd_agent.stop() == 0
    assert words[abi.EntryKind.HTTP] == encode_word(30)
    assert words[abi.WORD_FALLBACK] == encode_word(5)
    assert table[abi.HEADER_MAGIC] == abi.MAGIC | abi.ABI
    assert table[abi.HEADER_LEASE] <= time.clock_gettime_ns(time.CLOCK_BOOTTIME) + 10 * 10**9
    peer.close()


def test_who_watches_is_told_that_it_was_killed(memfd_agent: AgentProcess) -> None:
    watching = start(memfd_agent.settings, "watch")
    eventually(lambda: established(memfd_agent), "it watches")
    memfd_agent.kill()
    _, err = watching.communicate(timeout=PATIENCE_S)
    assert watching.returncode == 3
    assert str(memfd_agent.run_dir / "api.sock") in err
    assert "Traceback" not in err


def test_a_second_agent_on_the_same_folder_says_so_and_leaves_the_first_alone(memfd_agent: AgentProcess) -> None:
    _, err = run(memfd_agent.settings, "agent", code=1)
    assert f"another agent is running on {memfd_agent.run_dir}" in err
    assert memfd_agent.get("/healthz")["table"] == "memfd"
    assert sorted(sockets_in(memfd_agent.run_dir)) == ["api.sock", "app.sock"]


def test_two_agents_on_folders_of_their_own_do_not_meet(make_agent: MakeAgent) -> None:
    one, other = make_agent(SPANDIAL_TABLE="memfd"), make_agent(SPANDIAL_TABLE="memfd")
    one.set(30)
    assert other.get("/sampling")["rules"] == []


def test_its_log_can_be_json(make_agent: MakeAgent) -> None:
    agent = make_agent(SPANDIAL_TABLE="memfd", SPANDIAL_LOG="json")
    agent.stop()
    lines = [json.loads(line) for line in agent.log.read_text().splitlines()]
    assert [line["event"] for line in lines][-2:] == ["serving", "stopped"]


def test_a_taken_port_keeps_it_from_starting_and_nothing_is_left_behind(settings: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings["SPANDIAL_PORT"] = port = str(taken.getsockname()[1])
        _, err = run(settings, "agent", code=1)
    assert f"cannot listen on 127.0.0.1:{port}" in err
    assert sockets_in(Path(settings["SPANDIAL_RUN_DIR"])) == []


def test_rules_that_cannot_be_read_keep_it_from_starting(settings: dict[str, str]) -> None:
    rules = Path(settings["SPANDIAL_STATE_DIR"]) / "rules.sqlite"
    rules.parent.mkdir()
    rules.write_bytes(b"no database" * 1000)
    _, err = run(settings, "agent", code=1)
    assert str(rules) in err
    assert sockets_in(Path(settings["SPANDIAL_RUN_DIR"])) == []


@pytest.mark.parametrize("name", ["SPANDIAL_RUN_DIR", "SPANDIAL_STATE_DIR"])
def test_a_folder_that_cannot_be_made_is_named(settings: dict[str, str], name: str) -> None:
    settings[name] = "/proc/no/such/folder"
    _, err = run(settings, "agent", code=1)
    assert "/proc/no" in err
    assert "SPANDIAL_RUN_DIR and SPANDIAL_STATE_DIR" in err


def test_a_folder_too_deep_for_a_socket_is_named(settings: dict[str, str], tmp_path: Path) -> None:
    settings["SPANDIAL_RUN_DIR"] = str(tmp_path / ("deep" * 30))
    _, err = run(settings, "agent", code=1)
    assert err.splitlines()[-1].startswith(f"spandial: cannot listen in {settings['SPANDIAL_RUN_DIR']} (")
    assert "SPANDIAL_RUN_DIR sets another" in err


def test_without_the_kernel_side_it_is_degraded_and_says_so(make_agent: MakeAgent) -> None:
    agent = make_agent(SPANDIAL_TABLE="memfd")
    health = agent.get("/healthz")
    assert (health["status"], health["table"], health["capture"]) == ("degraded", "memfd", "off")
    assert health["missing"][0] == "the kernel side is off: SPANDIAL_TABLE=memfd."


@pytest.mark.kernel
def test_a_folder_in_which_nothing_can_be_kept_is_no_obstacle(make_agent: MakeAgent) -> None:
    agent = make_agent(SPANDIAL_COMPILED_DIR="/proc/no/such/folder", SPANDIAL_CAPTURE="off")
    assert agent.get("/healthz")["table"] == "bpf"
    [line] = [line for line in agent.log.read_text().splitlines() if "not kept" in line]
    assert "/proc/no/such/folder" in line


@pytest.mark.kernel
def test_why_a_program_does_not_compile_is_said(make_agent: MakeAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BCC_KERNEL_SOURCE", "/proc/no/such/folder")
    health = make_agent(SPANDIAL_CAPTURE="off", SPANDIAL_REQUIRE_KERNEL="false").get("/healthz")
    assert (health["table"], len(health["missing"])) == ("memfd", 1)
    assert health["missing"][0].startswith("rates.c does not compile: ")
    assert "Unable to find kernel headers" in health["missing"][0]


@pytest.mark.parametrize("how", ["full", "closed", "unread"])
def test_an_agent_whose_log_takes_nothing_starts_and_serves(settings: dict[str, str], how: str) -> None:
    reader, pipe = os.pipe()
    if how == "unread":
        os.set_blocking(pipe, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(pipe, bytes(4096))
        os.set_blocking(pipe, True)
    log = os.open("/dev/full", os.O_WRONLY) if how == "full" else pipe
    if how == "closed":
        os.close(reader)
    command = [sys.executable, "-m", "spandial_agent", "agent"]
    with subprocess.Popen(command, env={**os.environ, **settings}, stdout=log, stderr=log) as process:
        try:
            transport = httpx.HTTPTransport(uds=f"{settings['SPANDIAL_RUN_DIR']}/api.sock")
            with httpx.Client(transport=transport, base_url="http://spandial", timeout=PATIENCE_S) as client:
                eventually(lambda: client.get("/healthz").is_success, "it serves")
                assert client.get("/stats").json()["losses"]["log_unwritten"] > 0
                process.terminate()
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()
