"""The version before: its hooks are served by this agent, and this hook obeys its agent."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from spandial import abi
from tests.agent_process import AgentProcess, import_path
from tests.spandial import reporting
from tests.spandial.applications import Application, hook_counts

_BEFORE = "70eb7c4"  # the last version whose hooks map the BPF map; its ABI is 2, as is today's
_ROOT = Path(__file__).parents[2]
# What a wheel of that version holds, and where.
_PLACES = {
    "agent/spandial": "spandial",
    "agent/spandial_agent": "spandial_agent",
    "api/spandial_api": "spandial_api",
    "bpf": "spandial_agent/bpf",
}
_SHOWS = "import spandial; print(os.path.dirname(spandial.__file__), file=sys.stderr, flush=True)\n"
_COUNTS = _SHOWS + "serve(linked(Sampler()))"


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where the version before lies as an installed wheel of it would."""
    archive = subprocess.run(["git", "archive", _BEFORE], cwd=_ROOT, capture_output=True)
    if archive.returncode:
        absent = pytest.fail if os.environ.get("SPANDIAL_REQUIRE_KERNEL") == "1" else pytest.skip
        absent(f"the checkout has no history: {archive.stderr.decode(errors='replace').strip()}")
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("before")
    subprocess.run(["tar", "--extract", "--directory", source], input=archive.stdout, check=True)
    for begins, place in _PLACES.items():
        shutil.copytree(source / begins, folder / place)
    return folder


@pytest.fixture(params=[pytest.param("bpf", marks=pytest.mark.kernel), "memfd"])
def table(request: pytest.FixtureRequest) -> str:
    """What an agent's table is."""
    return str(request.param)


@pytest.fixture
def agent_before(before: Path, table: str, tmp_path: Path) -> Iterator[AgentProcess]:
    settings = {"SPANDIAL_TABLE": table, "SPANDIAL_COMPILED_DIR": str(before / "compiled")}
    agent = AgentProcess(tmp_path, SPANDIAL_CAPTURE_TLS="off", **settings, **import_path(before))
    agent.start()
    yield agent
    agent.stop()


def test_this_agent_serves_a_hook_of_the_version_before(
    make_agent: Callable[..., AgentProcess], table: str, before: Path
) -> None:
    agent = make_agent(SPANDIAL_TABLE=table)
    agent.set(40)
    with _application_of(before, agent) as application:
        assert application.obeys(40)
        assert application.errors == [str(before / "spandial")]
        agent.set(70)
        assert application.obeys(70)
        [target] = agent.hooked("shop")
        assert target["hooks"] == [{"abi": 2, "spandial": ""}]
        assert sum(hook_counts(agent, application.pid).values()) >= 100
        agent.stop()
        agent.start()
        assert application.obeys(70)
        assert application.end() == 0


def test_this_hook_obeys_an_agent_of_the_version_before(agent_before: AgentProcess, table: str) -> None:
    agent_before.set(40)
    assert agent_before.get("/healthz")["table"] == table
    with Application(agent_before.run_dir, _COUNTS, OTEL_SERVICE_NAME="shop") as application:
        assert application.obeys(40)
        agent_before.set(70)
        assert application.obeys(70)
        assert "hooks" not in agent_before.hooked("shop")[0]
        assert sum(hook_counts(agent_before, application.pid).values()) >= 100
        assert (application.end(), len(application.errors)) == (0, 1)


def test_targets_show_the_versions_of_their_hooks(memfd_agent: AgentProcess) -> None:
    with Application(memfd_agent.run_dir, _COUNTS, OTEL_SERVICE_NAME="shop") as application:
        application.report()
        [target] = memfd_agent.hooked("shop")
        assert target["hooks"] == [{"abi": abi.ABI, "spandial": version("spandial")}]
        assert application.end() == 0


def _application_of(package: Path, agent: AgentProcess) -> Application:
    """An application with another version's hook."""
    return Application(
        agent.run_dir, _COUNTS, OTEL_SERVICE_NAME="shop", **import_path(package, Path(reporting.__file__).parent)
    )
