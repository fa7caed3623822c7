"""An agent's HTTP interface around a fake node, on a Unix socket where the command line finds it."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

from spandial_agent.serving.binding import bind_tcp, bind_unix
from spandial_agent.serving.listeners import serve
from spandial_api.app import build_app
from spandial_api.control import Control
from spandial_api.store import Store
from tests.spandial_api.conftest import access_of
from tests.spandial_api.fake_node import FakeNode

__all__ = ["FakeAgent"]


class FakeAgent:
    """Serves until it is stopped.

    Attributes:
        node: what it serves.
        settings: SPANDIAL_* variables for the command line.
    """

    def __init__(self, folder: Path) -> None:
        self.node = FakeNode()
        self.settings = {"SPANDIAL_RUN_DIR": str(folder), "SPANDIAL_STATE_DIR": str(folder)}
        self._folder = folder
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        assert self._ready.wait(10)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        store = Store(self._folder / "rules.sqlite")
        control = Control(store, self.node)
        app = build_app(control, self.node, access=access_of(self._folder), version="0")
        with bind_tcp("127.0.0.1", 0) as tcp, bind_unix(self._folder / "api.sock", "no-group-of-this-name") as unix:
            self._ready.set()
            await serve(app, tcp, unix, self._stop)
        store.close()
