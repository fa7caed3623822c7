"""The node's parts without a kernel side."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import structlog

from spandial_agent.node import LocalNode
from spandial_agent.table.memfd import MemfdTable
from spandial_agent.table.rates import RateTable
from spandial_agent.targets.targets import Targets
from tests.spandial_agent.fake_capture import FakeCapture
from tests.spandial_agent.running_discovery import Start, scan_only, starting
from tests.spandial_agent.running_node import Registrar, make_node
from tests.spandial_agent.running_registrar import DEFAULT, Peer, RunningRegistrar


@pytest.fixture(autouse=True, scope="package")
def _quiet_log() -> Iterator[None]:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    yield
    structlog.reset_defaults()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def table() -> Iterator[RateTable]:
    table = RateTable(MemfdTable())
    yield table
    table.close()


@pytest.fixture
def capture() -> FakeCapture:
    return FakeCapture()


@pytest.fixture
def targets(table: RateTable, capture: FakeCapture) -> Iterator[Targets]:
    targets = Targets(table, DEFAULT, capture)  # type: ignore[arg-type]
    yield targets
    for target in list(targets):
        targets.remove(target.pid)


@pytest.fixture
def registrar() -> Registrar:
    return Registrar()


@pytest.fixture
def discovery() -> SimpleNamespace:
    return SimpleNamespace(how="events", reason="", lost=3, cut=0)


@pytest.fixture
def node(
    table: RateTable, targets: Targets, capture: FakeCapture, registrar: Registrar, discovery: SimpleNamespace
) -> LocalNode:
    return make_node(table, targets, capture, registrar, discovery)


@pytest.fixture
def running(tmp_path: Path, table: RateTable, targets: Targets) -> Iterator[RunningRegistrar]:
    running = RunningRegistrar(tmp_path / "app.sock", table, targets)
    yield running
    running.stop()
    assert running.raised == []


@pytest.fixture
def peer(running: RunningRegistrar) -> Iterator[Peer]:
    peer = running.peer()
    yield peer
    peer.close()


@pytest.fixture
def start() -> Iterator[Start]:
    with starting() as start:
        yield start


@pytest.fixture
def scanning(monkeypatch: pytest.MonkeyPatch) -> None:
    scan_only(monkeypatch)


@pytest.fixture
def copy_of_sleep(tmp_path: Path) -> str:
    """An executable of a name of its own; it sleeps."""
    sleep = shutil.which("sleep")
    assert sleep is not None
    return str(shutil.copy(sleep, tmp_path / "edge-proxy"))
