"""Files of a running agent are removed: it can still be reached, and what it answers is still kept."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from spandial_agent.errors import SpandialError
from spandial_agent.lock import only_agent
from spandial_agent.serving.renewal import Renewal
from tests.agent_process import AgentProcess, eventually
from tests.spandial_agent.command import run
from tests.spandial_agent.running_registrar import Peer, hello


def serves(agent: AgentProcess) -> bool:
    return agent.http.get("/healthz").is_success


@pytest.mark.parametrize("whole", [False, True], ids=["files", "folder"])
def test_what_is_removed_in_the_run_directory_is_made_anew(memfd_agent: AgentProcess, whole: bool) -> None:
    known = Peer()
    known.connect(memfd_agent.run_dir / "app.sock")
    assert "row" in known.register(hello())
    if whole:
        memfd_agent.run_dir.rename(memfd_agent.run_dir.with_name("away"))
    else:
        for path in list(memfd_agent.run_dir.iterdir()):
            path.unlink()
    memfd_agent.http = AgentProcess(memfd_agent.run_dir.parent).http  # one that must connect anew
    eventually(lambda: serves(memfd_agent), "the API's socket is there again")
    eventually(lambda: (memfd_agent.run_dir / "app.sock").is_socket(), "so is the applications'")
    peer = Peer()
    peer.connect(memfd_agent.run_dir / "app.sock")
    assert "row" in peer.register(hello())
    assert len([t for t in memfd_agent.get("/targets") if t["pid"] == os.getpid()]) == 1
    _, err = run(memfd_agent.settings, "agent", code=1)
    assert "another agent is running" in err
    memfd_agent.set(30)
    known.close()
    peer.close()
    assert memfd_agent.stop() == 0
    assert "Traceback" not in memfd_agent.log.read_text()
    assert not any(path.is_socket() for path in memfd_agent.run_dir.iterdir())


@pytest.mark.parametrize("suffix", ["", "-wal", "*"])
def test_a_change_that_is_answered_survives_though_the_store_was_removed(
    memfd_agent: AgentProcess, suffix: str
) -> None:
    memfd_agent.set(30, env="gray")
    for path in memfd_agent.state_dir.glob(f"rules.sqlite{suffix}"):
        path.unlink()
    (memfd_agent.state_dir / "rules.log").unlink()
    (memfd_agent.state_dir / "rules.json").unlink(missing_ok=True)
    memfd_agent.set(5)
    memfd_agent.kill()
    memfd_agent.start()
    rules = memfd_agent.get("/sampling")["rules"]
    assert {rule["selector"]: rule["rate"] for rule in rules} == {"env=gray": 30, "default": 5}


def test_a_store_that_was_removed_is_there_again_though_nobody_changes_anything(memfd_agent: AgentProcess) -> None:
    memfd_agent.set(30)
    memfd_agent.state_dir.rename(memfd_agent.state_dir.with_name("away"))
    eventually(lambda: (memfd_agent.state_dir / "rules.sqlite").exists(), "the store is made anew")
    memfd_agent.kill()
    memfd_agent.start()
    assert [rule["rate"] for rule in memfd_agent.get("/sampling")["rules"]] == [30]


def test_the_place_of_another_agent_is_left_alone(tmp_path: Path) -> None:
    run_dir, said = tmp_path / "run", list[str]()
    with only_agent(run_dir, tmp_path / "state") as renew:
        renew()
        (run_dir / "lock").unlink()
        with only_agent(run_dir, tmp_path / "state"):
            with pytest.raises(SpandialError, match="another agent has taken"):
                renew()
            renewed: list[Callable[[], None]] = []
            renewal = Renewal(renew, lambda: renewed.append(renew), run_dir / "api.sock", "nobody", said.append)
            assert [renewal(), renewal()] == [None, None]
            assert renewed == []
            assert len(said) == 1
