"""The application-facing socket: processes register here and are handed the table, a counter page and the sheet."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import socket
import time
from collections import Counter, deque
from collections.abc import Collection
from pathlib import Path
from typing import Any

import structlog

from spandial import abi
from spandial_agent.discovery.connection_room import ConnectionRoom
from spandial_agent.discovery.hello import BadHello, parse_hello
from spandial_agent.discovery.hook_connection import Connection
from spandial_agent.processes.counter_page import CounterPage, HookVersion
from spandial_agent.processes.proc import Process, read_process
from spandial_agent.table.rates import RateTable
from spandial_agent.targets.target import Target
from spandial_agent.targets.targets import Targets
from spandial_api.folders import identity

__all__ = ["Registrar"]

_log = structlog.get_logger("spandial.registrar")

_MESSAGE_MAX = 1 << 17  # the longest labels, escaped or not
_WAITING_MAX = 1024  # connections that have not registered yet
_AT_ONCE = 16  # connections that are accepted in one turn of the event loop
_SAID_MAX = 128  # of those who have said something; the next wait to be accepted
_SLICE_S = 0.005  # of registrations in one turn; afterwards the loop has as long for everything else
_ACCEPT_RETRY_S = 0.5
_PUBLISH_WAIT_S = 0.05
_PUBLISH_POLL_S = 0.001


class Registrar:
    """Listens on `app.sock`. Everything happens on the event loop's thread, and no peer can make it wait: registrations
    are taken in slices, from one user after the other, and nothing is read from those who have registered.

    Attributes:
        refused: registrations that were refused.
    """

    def __init__(self, path: Path, table: RateTable, targets: Targets, lease_s: float) -> None:
        self.refused = 0
        self._path = path
        self._table = table
        self._targets = targets
        self._lease_s = lease_s
        self._connections: dict[int, Connection] = {}
        self._waiting: dict[int, Connection] = {}  # those that have not registered yet, the longest first
        self._said: dict[int, deque[Connection]] = {}  # those of them that have said something, by uid
        self._slice: asyncio.TimerHandle | None = None
        self._room = ConnectionRoom(targets)
        self._ends = select.epoll()
        self._requests = 0
        self._retry: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Bind and listen. Any process may connect: what it gets is for reading only. Raises OSError."""
        self._loop = asyncio.get_running_loop()
        self._listen()
        self._loop.add_reader(self._ends, self._drop_ended)
        self._targets.on_housed = self._send_away

    def renew(self) -> None:
        """Listen anew if somebody removed the socket. Who is registered already notices nothing. Raises OSError."""
        if identity(self._path) == self._identity:
            return
        before = self._listener
        self._listen()
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self._loop.remove_reader(before)
        before.close()

    def _listen(self) -> None:
        self._path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            listener.setblocking(False)
            listener.bind(str(self._path))
            os.chmod(self._path, 0o666)
            listener.listen(1024)
        except OSError:
            listener.close()
            raise
        self._listener, self._identity = listener, identity(self._path)
        self._loop.add_reader(listener, self._accept)

    async def publish(self, targets: Collection[Target] | None = None) -> None:
        """Ask every hook, or those of some targets, to publish its counts, and wait until they have, or for 50 ms."""
        self._requests += 1
        number = self._requests
        request = json.dumps({"publish": number}).encode()
        meant = None if targets is None else {target.pid for target in targets}
        asked: list[tuple[Connection, CounterPage]] = []
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
        for timer in (self._retry, self._slice):
            if timer is not None:
                timer.cancel()
        self._retry = self._slice = None
        self._loop.remove_reader(self._listener)
        self._loop.remove_reader(self._ends)
        self._listener.close()
        self._path.unlink(missing_ok=True)
        for connection in list(self._connections.values()):
            self._drop(connection)

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                peer, _address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:  # out of descriptors, or the peer went away
                _log.warning("a process could not register", error=str(error))
                # Who waits is waiting still, and would wake the loop again at once.
                self._loop.remove_reader(self._listener)
                if self._retry is None:
                    self._retry = self._loop.call_later(_ACCEPT_RETRY_S, self._accept_again)
                return
            peer.setblocking(False)
            try:
                connection = Connection(peer)
            except OSError:  # its process has ended, or there are no descriptors left
                peer.close()
                continue
            self._connections[peer.fileno()] = self._waiting[peer.fileno()] = connection
            self._loop.add_reader(peer, self._receive, connection)
            if len(self._waiting) > _WAITING_MAX:
                self._drop(self._longest_of_most())

    def _accept_again(self) -> None:
        self._retry = None
        self._loop.add_reader(self._listener, self._accept)

    def _longest_of_most(self) -> Connection:
        """Of the user with the most connections that wait, the one that has waited longest."""
        most = Counter(connection.uid for connection in self._waiting.values()).most_common(1)[0][0]
        return next(connection for connection in self._waiting.values() if connection.uid == most)

    def _receive(self, connection: Connection) -> None:
        """It has said something, or has gone: it is its user's turn when it comes."""
        self._loop.remove_reader(connection.peer)
        self._said.setdefault(connection.uid, deque()).append(connection)
        if sum(map(len, self._said.values())) >= _SAID_MAX:
            self._loop.remove_reader(self._listener)
        if self._slice is None:
            self._slice = self._loop.call_later(0, self._take_slice)

    def _take_slice(self) -> None:
        begun, worked = time.monotonic(), 0.0
        while self._said and worked <= _SLICE_S:
            uid, said = next(iter(self._said.items()))
            del self._said[uid]
            connection = said.popleft()
            if said:
                self._said[uid] = said  # behind all others
            self._try_to_listen_to(connection)
            worked = time.monotonic() - begun
        if not self._said and self._retry is None:
            self._accept_again()
        self._slice = self._loop.call_later(worked, self._take_slice) if self._said else None

    def _try_to_listen_to(self, connection: Connection) -> None:
        try:
            self._listen_to(connection)
        except Exception as error:  # whatever one registration runs into, the next one is listened to
            self.refused += 1
            _log.warning("a registration failed", pid=connection.pid, uid=connection.uid, exc_info=error)
            self._drop(connection)

    def _listen_to(self, connection: Connection) -> None:
        if self._waiting.get(connection.peer.fileno()) is not connection:  # dropped meanwhile
            return
        try:
            message = connection.peer.recv(_MESSAGE_MAX)
        except OSError:
            message = b""
        if message:
            self._register(connection, message)
        else:
            self._drop(connection)

    def _register(self, connection: Connection, message: bytes) -> None:
        pid = connection.pid
        try:
            labels, default, hook = parse_hello(message)
            process = self._process_of(connection)
            self._room.check(process)
            page = _make_page(hook)
        except BadHello as error:
            self.refused += 1
            _log.warning("registration refused", pid=pid, uid=connection.uid, reason=str(error))
            self._answer(connection, {"error": str(error), "abi": abi.ABI}, [])
            self._drop(connection)
            return
        connection.forget_pidfd()
        target = self._targets.hook(process, labels, default, page)
        connection.target, connection.page, connection.uid = target, page, process.uid
        self._room.take(connection.uid)
        del self._waiting[connection.peer.fileno()]
        # Registered hooks have nothing more to say: without EPOLLIN, what they send stays with them.
        self._ends.register(connection.peer, 0)
        answer = {"abi": hook.abi, "row": target.row.number, "lease_ms": int(self._lease_s * 1000)}
        shared = [self._table.backend.descriptor, page.descriptor, self._table.sheet.descriptor]
        if not self._answer(connection, answer, shared):
            self._drop(connection)
            return
        said = {"service": labels.service, "env": labels.env, "row": target.row.number, "hook": hook.spandial}
        _log.info("hooked", pid=pid, uid=connection.uid, **said)

    def _process_of(self, connection: Connection) -> Process:
        """Who connected: the process that had the pid then, as the same user. Raises BadHello."""
        pid = connection.pid
        process = read_process(pid)
        if process is None:
            raise BadHello(f"process {pid} cannot be seen from the agent's pid namespace")
        if not connection.lives():  # asked last: it was alive while its pid was looked at
            raise BadHello(f"process {pid}, which connected, has ended")
        # Who executes a program of another user's keeps its pid and its connections. Root may become anybody.
        if connection.uid not in (process.uid, 0):
            raise BadHello(f"process {pid} connected as user {connection.uid}, and is user {process.uid} now")
        return process

    def _drop_ended(self) -> None:
        for descriptor, _ in self._ends.poll(0):
            if (connection := self._connections.get(descriptor)) is not None:
                self._drop(connection)

    def send_all_away(self) -> None:
        """All hooks come back at once, and count from zero, as the kernel's counts do that theirs are compared with."""
        for connection in list(self._connections.values()):
            if connection.target is not None:
                self._drop(connection)

    def _send_away(self, target: Target) -> None:
        """Its hooks come back at once, and are told of its own row."""
        for connection in list(self._connections.values()):
            if connection.target is target:
                self._drop(connection)

    def _answer(self, connection: Connection, answer: dict[str, Any], descriptors: list[int]) -> bool:
        try:
            socket.send_fds(connection.peer, [json.dumps(answer).encode()], descriptors)
        except OSError:
            return False
        return True

    def _drop(self, connection: Connection) -> None:
        if self._connections.pop(connection.peer.fileno(), None) is None:
            return
        self._waiting.pop(connection.peer.fileno(), None)
        connection.forget_pidfd()
        if connection.target is None or connection.page is None:
            self._loop.remove_reader(connection.peer)
        else:
            with contextlib.suppress(OSError):  # it could not be registered
                self._ends.unregister(connection.peer)
            self._room.give_back(connection.uid)
            self._targets.unhook(connection.target, connection.page)
        connection.peer.close()


def _make_page(hook: HookVersion) -> CounterPage:
    try:
        return CounterPage(hook)
    except OSError as error:
        raise BadHello(f"the agent cannot make a counter page ({error.strerror})") from None
