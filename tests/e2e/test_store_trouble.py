"""A disk that is full, read-only or corrupt: the agent serves the last good rules, takes no change, and says why."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.agent_process import AgentProcess, eventually

pytestmark = [pytest.mark.kernel, pytest.mark.e2e]

MakeAgent = Callable[..., AgentProcess]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one mebibyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def rates(agent: AgentProcess) -> dict[str, float]:
    return {rule["selector"]: rule["rate"] for rule in agent.get("/sampling")["rules"]}


def refused(agent: AgentProcess, rate: str, **selector: str) -> str:
    """Why a change is not taken."""
    answer = agent.http.put("/sampling", params={"rate": rate, **selector})
    assert answer.status_code == 503, answer.text
    return str(answer.json()["detail"])


def trouble(agent: AgentProcess) -> list[str]:
    health = agent.get("/healthz")
    found = [sentence for sentence in health["missing"] if "rules.sqlite" in sentence]
    assert not found or health["status"] == "degraded"
    return found


def fill(folder: Path) -> Path:
    """Leave no room at all."""
    path = folder / "filler"
    with open(path, "wb", buffering=0) as file:
        size = 65_536
        while size:
            try:
                file.write(os.urandom(size))
            except OSError:
                size //= 2
    return path


def test_a_full_disk(make_agent: MakeAgent, small_disk: Path) -> None:
    agent = make_agent(SPANDIAL_TABLE="memfd", SPANDIAL_STATE_DIR=str(small_disk))
    agent.set(30, env="gray")
    filler = fill(small_disk)
    reasons = []
    for number in range(1000):  # what the log has room for is still taken
        answer = agent.http.put("/sampling", params={"rate": "1", "service": f"{number:0250}"})
        if answer.status_code != 200:
            assert answer.status_code == 503
            reasons.append(answer.json()["detail"])
            break
    assert "full" in reasons[0]
    assert "nothing was changed" in reasons[0]
    assert any("full" in sentence for sentence in trouble(agent))
    before = rates(agent)
    assert before["env=gray"] == 30
    filler.unlink()
    eventually(lambda: trouble(agent) == [], "the disk is well again")
    agent.set(50, env="gray")
    agent.kill()
    agent.start()
    assert rates(agent) == {**before, "env=gray": 50}


def test_a_read_only_disk(make_agent: MakeAgent, small_disk: Path) -> None:
    agent = make_agent(SPANDIAL_TABLE="memfd", SPANDIAL_STATE_DIR=str(small_disk))
    agent.set(30, env="gray")
    eventually(lambda: (small_disk / "rules.json").exists(), "a copy of the rules is made")
    agent.stop()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    agent.start()
    assert rates(agent) == {"env=gray": 30}
    assert "cannot be opened" in refused(agent, "50", env="gray")
    assert any("cannot be opened" in sentence for sentence in trouble(agent))
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)


def test_a_corrupt_store(make_agent: MakeAgent, tmp_path: Path) -> None:
    agent = make_agent(SPANDIAL_TABLE="memfd")
    agent.set(30, env="gray", service="checkout")
    agent.set(1)
    eventually(lambda: b'"revision": 2' in (agent.state_dir / "rules.json").read_bytes(), "the copy follows")
    agent.kill()
    for path in agent.state_dir.glob("rules.sqlite*"):
        path.write_bytes(os.urandom(8192))
    agent.start()
    assert rates(agent) == {"service=checkout env=gray": 30, "default": 1}
    assert "obeying the rules of revision 2" in refused(agent, "50")
    assert any("mend the file or move it away" in sentence for sentence in trouble(agent))
    assert agent.http.get("/audit").status_code == 503
    agent.stop()
    for path in agent.state_dir.glob("rules.sqlite*"):
        path.unlink()
    agent.start()
    [said] = trouble(agent)  # until the next start
    assert "a switch, budgets and quotas" in said
    assert rates(agent) == {"service=checkout env=gray": 30, "default": 1}
