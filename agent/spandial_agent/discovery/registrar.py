"""The application-facing socket: processes register here and are handed the table, a counter page and the sheet."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import select
import socket
import struct
import time
from collections import Counter, deque
from collections.abc import Collection
from pathlib import Path
from typing import Any

import structlog

from spandial import abi
from spandial.labels import ATTRIBUTES_MAX, LABEL_MAX, Labels, other_labels
from spandial_agent.processes.counter_page import CounterPage, HookVersion
from spandial_agent.processes.pidfd import has_ended, peer_pidfd
from spandial_agent.processes.proc import Process, read_process
from spandial_agent.processes.shares import Shares
from spandial_agent.table.rates import RateTable
from spandial_agent.targets.target import Target
from spandial_agent.targets.targets import Targets
from spandial_api.folders import identity

__all__ = ["Registrar"]

_log = structlog.get_logger("spandial.registrar")

_MESSAGE_MAX = 1 << 17  # the longest labels, escaped or not
_PER_PROCESS = 8
_VERSION_MAX = 64
_WAITING_MAX = 1024  # connections that have not registered yet
_AT_ONCE = 16  # connections that are accepted in one turn of the event loop
_SAID_MAX = 128  # of those who have said something; the next wait to be accepted
_SLICE_S = 0.005  # of registrations in one turn; afterwards the loop has as long for everything else
_UCRED = struct.Struct("iII")
_ACCEPT_RETRY_S = 0.5
_PUBLISH_WAIT_S = 0.05
_PUBLISH_POLL_S = 0.001


class _BadHello(ValueError):
    """A registration that is not one; says what was wrong."""


class _Connection:
    """
    Attributes:
        pid, uid: whose it is, as of its connect(2).
        pidfd: the same process, until it has registered.
    """

    def __init__(self, peer: socket.socket) -> None:
        """Raises OSError: it is nobody's any more, or there are no descriptors left."""
        self.peer = peer
        self.pid, self.uid, _ = _UCRED.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        self.pidfd: int | None = peer_pidfd(peer, self.pid) if self.pid > 0 else None
        self.target: Target | None = None
        self.page: CounterPage | None = None

    def lives(self) -> bool:
        """Whether the process that connected has not ended: what its pid shows then is its own."""
        return self.pidfd is not None and not has_ended(self.pidfd)

    def forget_pidfd(self) -> None:
        if self.pidfd is not None:
            os.close(self.pidfd)
            self.pidfd = None


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
        self._connections: dict[int, _Connection] = {}
        self._waiting: dict[int, _Connection] = {}  # those that have not registered yet, the longest first
        self._said: dict[int, deque[_Connection]] = {}  # those of them that have said something, by uid
        self._slice: asyncio.TimerHandle | None = None
        self._capacity = _capacity()
        self._shares = Shares(self._capacity // 8, self._capacity // 64)
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
                connection = _Connection(peer)
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

    def _longest_of_most(self) -> _Connection:
        """Of the user with the most connections that wait, the one that has waited longest."""
        most = Counter(connection.uid for connection in self._waiting.values()).most_common(1)[0][0]
        return next(connection for connection in self._waiting.values() if connection.uid == most)

    def _receive(self, connection: _Connection) -> None:
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

    def _try_to_listen_to(self, connection: _Connection) -> None:
        try:
            self._listen_to(connection)
        except Exception as error:  # whatever one registration runs into, the next one is listened to
            self.refused += 1
            _log.warning("a registration failed", pid=connection.pid, uid=connection.uid, exc_info=error)
            self._drop(connection)

    def _listen_to(self, connection: _Connection) -> None:
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

    def _register(self, connection: _Connection, message: bytes) -> None:
        pid = connection.pid
        try:
            labels, default, hook = _parse_hello(message)
            process = self._process_of(connection)
            self._check_share(process)
            page = _make_page(hook)
        except _BadHello as error:
            self.refused += 1
            _log.warning("registration refused", pid=pid, uid=connection.uid, reason=str(error))
            self._answer(connection, {"error": str(error), "abi": abi.ABI}, [])
            self._drop(connection)
            return
        connection.forget_pidfd()
        target = self._targets.hook(process, labels, default, page)
        connection.target, connection.page, connection.uid = target, page, process.uid
        self._shares.take(connection.uid)
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

    def _process_of(self, connection: _Connection) -> Process:
        """Who connected: the process that had the pid then, as the same user. Raises _BadHello."""
        pid = connection.pid
        process = read_process(pid)
        if process is None:
            raise _BadHello(f"process {pid} cannot be seen from the agent's pid namespace")
        if not connection.lives():  # asked last: it was alive while its pid was looked at
            raise _BadHello(f"process {pid}, which connected, has ended")
        # Who executes a program of another user's keeps its pid and its connections. Root may become anybody.
        if connection.uid not in (process.uid, 0):
            raise _BadHello(f"process {pid} connected as user {connection.uid}, and is user {process.uid} now")
        return process

    def _check_share(self, process: Process) -> None:
        """Raises _BadHello."""
        known = self._targets.get(process.pid)
        if known is not None and len(known.pages) >= _PER_PROCESS:
            raise _BadHello(f"process {process.pid} has registered {_PER_PROCESS} times already")
        if not self._shares.may_take(process.uid, self._capacity - self._shares.total):
            raise _BadHello(
                f"user {process.uid} has {self._shares.held(process.uid)} connections of {self._capacity}, and what is "
                "left is for other users: end some of his processes"
            )
        if not self._targets.has_room_for(process):
            raise _BadHello(f"user {process.uid} has more processes than his share: end some of them")

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
        connection.forget_pidfd()
        if connection.target is None or connection.page is None:
            self._loop.remove_reader(connection.peer)
        else:
            with contextlib.suppress(OSError):  # it could not be registered
                self._ends.unregister(connection.peer)
            self._shares.give_back(connection.uid)
            self._targets.unhook(connection.target, connection.page)
        connection.peer.close()


def _capacity() -> int:
    """How many connections there may be: each takes three descriptors."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return min(max((limit - 512) // 3, limit // 6), _PER_PROCESS * abi.ROWS)


def _make_page(hook: HookVersion) -> CounterPage:
    try:
        return CounterPage(hook)
    except OSError as error:
        raise _BadHello(f"the agent cannot make a counter page ({error.strerror})") from None


def _parse_hello(message: bytes) -> tuple[Labels, int, HookVersion]:
    """Labels, default word and version of a registration. It comes from any process: raises _BadHello on all that is
    odd."""
    try:
        hello = json.loads(message)
    except (ValueError, RecursionError):
        raise _BadHello("a registration is a JSON object") from None
    if not isinstance(hello, dict):
        raise _BadHello("a registration is a JSON object")
    said, hook = hello.get("abi"), hello.get("hook", "")
    if not isinstance(said, int) or said not in abi.SPOKEN:
        raise _BadHello(f"the agent speaks ABI version {' or '.join(map(str, abi.SPOKEN))}, the process {said!r:.40}")
    if not isinstance(hook, str) or len(hook) > _VERSION_MAX or not hook.isprintable():
        raise _BadHello(f"hook is a version of spandial, a printable text of up to {_VERSION_MAX} characters")
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
    labels = Labels(*main)._replace(others=other_labels(attributes.items()))
    rate_alone = ~(abi.Flag.OPERATIONS | abi.Flag.EMIT | abi.Flag.THIN | abi.MODE_MASK)
    return labels, default & rate_alone, HookVersion(int(said), hook)
