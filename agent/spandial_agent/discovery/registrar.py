"""The application-facing socket: processes register here and are handed the table, a counter page and the sheet."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
from collections.abc import Collection
from pathlib import Path
from typing import Any

import structlog

from spandial import abi
from spandial.labels import ATTRIBUTES_MAX, LABEL_MAX, Labels, other_labels
from spandial_agent.processes.counter_page import CounterPage
from spandial_agent.processes.proc import read_process
from spandial_agent.table.rates import RateTable
from spandial_agent.targets.target import Target
from spandial_agent.targets.targets import Targets

__all__ = ["Registrar"]

_log = structlog.get_logger("spandial.registrar")

_MESSAGE_MAX = 1 << 17  # the longest labels, escaped or not
_PER_PROCESS = 8
_WAITING_MAX = 1024  # connections that have not registered yet
_UCRED = struct.Struct("iII")
_ACCEPT_RETRY_S = 0.5
_PUBLISH_WAIT_S = 0.05
_PUBLISH_POLL_S = 0.001


class _BadHello(ValueError):
    """A registration that is not one; says what was wrong."""


class _Connection:
    def __init__(self, peer: socket.socket) -> None:
        self.peer = peer
        self.target: Target | None = None
        self.page: CounterPage | None = None


class Registrar:
    """Listens on `app.sock`. Everything happens on the event loop's thread, and no peer can make it wait.

    Attributes:
        refused: registrations that were refused.
    """

    def __init__(self, path: Path, table: RateTable, targets: Targets, lease_s: float) -> None:
        self.refused = 0
        self._path = path
        self._table = table
        self._targets = targets
        self._lease_s = lease_s
        self._connections: dict[int, _Connection] = {}
        self._waiting: dict[int, _Connection] = {}  # those that have not registered yet, the longest first
        self._requests = 0
        self._retry: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Bind and listen. Any process may connect: what it gets is for reading only. Raises OSError."""
        self._loop = asyncio.get_running_loop()
        self._path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.setblocking(False)
        self._listener.bind(str(self._path))
        os.chmod(self._path, 0o666)
        self._listener.listen(1024)
        self._loop.add_reader(self._listener, self._accept)

    async def publish(self, targets: Collection[Target] | None = None) -> None:
        """Ask every hook, or those of some targets, to publish its counts, and wait until they have, or for 50 ms."""
        self._requests += 1
        number = self._requests
        request = json.dumps({"publish": number}).encode()
        meant = None if targets is None else {target.pid for target in targets}
        asked: list[tuple[_Connection, CounterPage]] = []
        for connection in self._connections.values():
            if connection.target is None or connection.page is None:
                continue
            if meant is not None and connection.target.pid not in meant:
                continue
            try:
                connection.peer.send(request)
                asked.append((connection, connection.page))
            except OSError:  # its queue is full, or it is gone: the counts that are there must do
                continue
        give_up = self._loop.time() + _PUBLISH_WAIT_S
        while self._loop.time() < give_up:
            asked = [(c, page) for c, page in asked if c.target and page in c.target.pages and page.published < number]
            if not asked:
                return
            await asyncio.sleep(_PUBLISH_POLL_S)

    def close(self) -> None:
        """Stop listening. Hooks keep their rates until the lease ends, and look for the next agent."""
        if self._retry is not None:
            self._retry.cancel()
        self._loop.remove_reader(self._listener)
        self._listener.close()
        self._path.unlink(missing_ok=True)
        for connection in list(self._connections.values()):
            self._drop(connection)

    def _accept(self) -> None:
        try:
            peer, _ = self._listener.accept()
        except OSError as error:  # out of descriptors, or the peer went away
            _log.warning("a process could not register", error=str(error))
            # Who waits is waiting still, and would wake the loop again at once.
            self._loop.remove_reader(self._listener)
            self._retry = self._loop.call_later(_ACCEPT_RETRY_S, self._loop.add_reader, self._listener, self._accept)
            return
        peer.setblocking(False)
        connection = _Connection(peer)
        self._connections[peer.fileno()] = self._waiting[peer.fileno()] = connection
        self._loop.add_reader(peer, self._receive, connection)
        if len(self._waiting) > _WAITING_MAX:
            self._drop(next(iter(self._waiting.values())))

    def _receive(self, connection: _Connection) -> None:
        try:
            message = connection.peer.recv(_MESSAGE_MAX)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if not message:
            self._drop(connection)
        elif connection.target is None:
            self._register(connection, message)
        # Registered hooks have nothing more to say; whatever they send is dropped.

    def _register(self, connection: _Connection, message: bytes) -> None:
        pid, uid, _ = _UCRED.unpack(connection.peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        try:
            labels, default = _parse_hello(message)
            process = read_process(pid)
            if process is None:
                raise _BadHello(f"process {pid} cannot be seen from the agent's pid namespace")
            known = self._targets.get(pid)
            if known is not None and len(known.pages) >= _PER_PROCESS:
                raise _BadHello(f"process {pid} has registered {_PER_PROCESS} times already")
            page = _make_page()
        except _BadHello as error:
            self.refused += 1
            _log.warning("registration refused", pid=pid, uid=uid, reason=str(error))
            self._answer(connection, {"error": str(error), "abi": abi.ABI}, [])
            self._drop(connection)
            return
        target = self._targets.hook(process, labels, default, page)
        connection.target, connection.page = target, page
        del self._waiting[connection.peer.fileno()]
        answer = {"abi": abi.ABI, "row": target.row.number, "lease_ms": int(self._lease_s * 1000)}
        shared = [self._table.backend.descriptor, page.descriptor, self._table.sheet.descriptor]
        if not self._answer(connection, answer, shared):
            self._drop(connection)
            return
        _log.info("hooked", pid=pid, uid=uid, service=labels.service, env=labels.env, row=target.row.number)

    def _answer(self, connection: _Connection, answer: dict[str, Any], descriptors: list[int]) -> bool:
        try:
            socket.send_fds(connection.peer, [json.dumps(answer).encode()], descriptors)
        except OSError:
            return False
        return True

    def _drop(self, connection: _Connection) -> None:
        if self._connections.pop(connection.peer.fileno(), None) is None:
            return
        self._waiting.pop(connection.peer.fileno(), None)
        self._loop.remove_reader(connection.peer)
        connection.peer.close()
        if connection.target is not None and connection.page is not None:
            self._targets.unhook(connection.target, connection.page)


def _make_page() -> CounterPage:
    try:
        return CounterPage()
    except OSError as error:
        raise _BadHello(f"the agent cannot make a counter page ({error.strerror})") from None


def _parse_hello(message: bytes) -> tuple[Labels, int]:
    """Labels and default word of a registration. It comes from any process: raises _BadHello on everything odd."""
    try:
        hello = json.loads(message)
    except (ValueError, RecursionError):
        raise _BadHello("a registration is a JSON object") from None
    if not isinstance(hello, dict):
        raise _BadHello("a registration is a JSON object")
    if hello.get("abi") != abi.ABI:
        raise _BadHello(f"the agent speaks ABI version {abi.ABI}, the process {hello.get('abi')!r:.40}")
    main = [hello.get(name, "") for name in ("service", "version", "env", "tenant")]
    attributes = hello.get("attributes", {})
    if not isinstance(attributes, dict) or len(attributes) > ATTRIBUTES_MAX:
        raise _BadHello(f"attributes are an object of up to {ATTRIBUTES_MAX} texts")
    for label in (*main, *attributes, *attributes.values()):
        if not isinstance(label, str) or len(label) > LABEL_MAX or not label.isprintable():
            raise _BadHello(f"labels are printable texts of up to {LABEL_MAX} characters")
    default = hello.get("default")
    if not isinstance(default, int) or not 0 <= default < 1 << 64 or not default & abi.Flag.VALID:
        raise _BadHello("default is a valid rate word")
    return Labels(*main)._replace(others=other_labels(attributes.items())), default & ~(
        abi.Flag.OPERATIONS | abi.Flag.EMIT | abi.Flag.THIN | abi.MODE_MASK
    )
