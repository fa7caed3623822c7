"""The node's parts without a kernel side."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog

from spandial.abi import encode_word
from spandial_agent.table import MemfdTable, RateTable
from spandial_agent.targets import Targets
from tests.spandial_agent.fake_capture import FakeCapture

DEFAULT = encode_word(100)


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
