"""A registrar on an event loop of its own, and processes that register with it."""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import socket
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

from spandial import abi
from spandial.abi import encode_word
from spandial_agent.discovery.registrar import Registrar
from spandial_agent.processes.counter_page import CounterPage
from spandial_agent.table.rates import RateTable
from spandial_agent.targets.target import Target
from spandial_agent.targets.targets import Targets
from tests.agent_process import PATIENCE_S

__all__ = ["DEFAULT", "Peer", "RunningRegistrar", "hello"]

DEFAULT = encode_word(100)

_T = TypeVar("_T")


def hello(**fields: Any) -> bytes:
    """A registration that is in order, but for the fields given."""
    valid = {"abi": abi.ABI, "service": "checkout", "version": "v1", "env": "gray", "default": DEFAULT, "pid": 1}
    return json.dumps({**valid, **fields}).encode()


class Peer:
    """A process's side of the application socket."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.descriptors: list[int] = []

    def connect(self, path: Path) -> None:
        # First without a timeout, with which a full backlog would be an error.
        self.socket.connect(str(path))
        self.socket.settimeout(PATIENCE_S)

    def register(self, message: bytes) -> dict[str, Any]:
        """The answer, which may be a refusal; the descriptors that came with it are kept until `close`."""
        self.socket.send(message)
        answer, self.descriptors, _, _ = socket.recv_fds(self.socket, 1 << 20, 4)
        return dict(json.loads(answer))

    def map_table(self) -> memoryview:
        return memoryview(mmap.mmap(self.descriptors[0], abi.TABLE_SIZE, prot=mmap.PROT_READ)).cast("Q")

    def map_page(self) -> memoryview:
        return memoryview(mmap.mmap(self.descriptors[1], abi.PAGE_SIZE)).cast("Q")

    def is_closed_by_the_agent(self) -> bool:
        try:
            return self.socket.recv(1 << 16) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self.socket.close()
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors = []


class RunningRegistrar:
    """Everything of the agent's happens in one thread, as in the agent; what it raises there is kept in `raised`."""

    def __init__(self, path: Path, table: RateTable, targets: Targets) -> None:
        self.path = path
        self.table = table
        self.targets = targets
        self.raised: list[dict[str, Any]] = []
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(lambda loop, context: self.raised.append(context))
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self.registrar = Registrar(path, table, targets, 10)
        self.call(self.registrar.start)

    def call(self, function: Callable[[], _T]) -> _T:
        """Call it on the event loop's thread."""

        async def called() -> _T:
            return function()

        return asyncio.run_coroutine_threadsafe(called(), self.loop).result(10)

    def publish(self, targets: Collection[Target] | None = None) -> None:
        asyncio.run_coroutine_threadsafe(self.registrar.publish(targets), self.loop).result(10)

    def peer(self) -> Peer:
        peer = Peer()
        peer.connect(self.path)
        return peer

    def pages(self) -> list[CounterPage]:
        return self.call(lambda: [page for target in self.targets for page in target.pages])

    def stop(self) -> None:
        self.call(self.registrar.close)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()
