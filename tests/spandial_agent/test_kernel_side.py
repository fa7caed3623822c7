"""The kernel side is made in a thread, and taken down whatever became of the rest."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from spandial_agent import kernel_side
from spandial_agent.errors import SpandialError
from spandial_agent.kernel_side import KernelSide
from spandial_agent.parts import run_parts
from spandial_agent.settings import Settings
from spandial_agent.table.memfd import MemfdTable
from tests.agent_process import PATIENCE_S


class Part:
    def __init__(self, name: str, closed: list[str]) -> None:
        self._name, self._closed = name, closed

    def close(self) -> None:
        self._closed.append(self._name)


@pytest.fixture
def closed() -> list[str]:
    return []


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch, closed: list[str]) -> threading.Event:
    """The kernel is at work until this is set."""
    verified = threading.Event()

    def make(settings: Settings, on_loading: Callable[[], None]) -> KernelSide:
        on_loading()
        assert verified.wait(PATIENCE_S)
        backend: Any = Part("backend", closed)
        capture: Any = Part("capture", closed)
        return KernelSide(backend, capture, [])

    monkeypatch.setattr(kernel_side, "_make", make)
    return verified


def test_the_rest_goes_on_while_the_kernel_verifies(verified: threading.Event, closed: list[str]) -> None:
    with kernel_side.making(Settings()) as made:
        verified.set()  # only the rest can
        made()
        assert closed == []
    assert closed == ["capture", "backend"]


def test_what_is_being_made_is_taken_down_where_another_part_fails(
    verified: threading.Event, closed: list[str]
) -> None:
    verifying = threading.Timer(0.05, verified.set)
    with contextlib.suppress(SpandialError), kernel_side.making(Settings()):
        verifying.start()
        raise SpandialError("another part")
    assert closed == ["capture", "backend"]


def test_what_cannot_be_made_is_said_to_who_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_side, "missing_for_kernel", lambda **_: ["there is no kernel."])
    refused = pytest.raises(SpandialError, match="the kernel side is required, but there is no kernel")
    with refused, kernel_side.making(Settings(require_kernel=True)) as made:
        made()


def test_its_thread_ends_with_what_it_makes(verified: threading.Event) -> None:
    verified.set()
    with kernel_side.making(Settings()) as made:
        made()
        for thread in threading.enumerate():
            if thread.name.startswith("spandial-kernel"):
                thread.join(PATIENCE_S)
                assert not thread.is_alive()


def test_an_agent_that_is_told_to_stop_while_it_starts_makes_no_more_parts(tmp_path: Path) -> None:
    settings = Settings(run_dir=tmp_path / "run", state_dir=tmp_path / "state", port=0)
    settings.run_dir.mkdir()

    async def start() -> None:
        stop, log = asyncio.Event(), cast("Any", None)
        stop.set()
        with contextlib.ExitStack() as stack:
            await run_parts(settings, log, stop, stack, None, lambda: None, lambda: KernelSide(MemfdTable(), None, []))

    asyncio.run(start())
    assert list(tmp_path.rglob("*")) == [settings.run_dir]
