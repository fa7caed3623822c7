"""A connection between this process and one that is no target."""

from __future__ import annotations

import multiprocessing
import socket
from multiprocessing.connection import Connection
from typing import Any, Literal

from tests.in_kernel.test_databases import Pair

__all__ = ["RemotePair"]


class RemotePair(Pair):
    """As `Pair`, but of this process is one end alone.

    Args:
        here: which one.
        family: AF_INET and AF_INET6 are connected over loopback.
    """

    def __init__(self, here: Literal["client", "server"] = "server", family: int = socket.AF_UNIX) -> None:
        self.client, self.server = socket.socketpair() if family == socket.AF_UNIX else _connected(family)
        self.here = here
        self.far = self.client if here == "server" else self.server
        fork = multiprocessing.get_context("fork")
        self._commands, commands = fork.Pipe()
        self._process = fork.Process(target=_obey, args=(commands, self.far), daemon=True)
        self._process.start()

    def send(self, *messages: bytes) -> None:
        for message in messages:
            self._pass(message, self.client, self.server)

    def answer(self, message: bytes) -> None:
        self._pass(message, self.server, self.client)

    def shut(self) -> None:
        """The far end sends no more."""
        self._tell("shutdown", None)

    def close(self) -> None:
        self._commands.send(None)
        self._process.join()
        super().close()

    def _pass(self, message: bytes, sender: socket.socket, receiver: socket.socket) -> None:
        if sender is self.far:
            self._tell("send", message)
            self.drain(receiver, len(message))
        else:
            sender.sendall(message)
            self._tell("drain", len(message))

    def _tell(self, what: str, value: object) -> None:
        self._commands.send((what, value))
        self._commands.recv()


def _obey(commands: Connection[Any, Any], end: socket.socket) -> None:
    while (command := commands.recv()) is not None:
        what, value = command
        if what == "send":
            end.sendall(value)
        elif what == "drain":
            Pair.drain(end, value)
        else:
            end.shutdown(socket.SHUT_WR)
        commands.send(None)


def _connected(family: int) -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0), family=family) as listener:
        client = socket.create_connection(listener.getsockname()[:2])
        server, _ = listener.accept()
    return client, server
