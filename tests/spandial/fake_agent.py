"""An agent that answers what a test wants it to answer."""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spandial import abi
from tests.agent_process import PATIENCE_S

__all__ = ["F_SEAL_FUTURE_WRITE", "FakeAgent", "answer", "counts", "page", "sealed", "sheet", "table"]

MAGIC = abi.MAGIC | abi.ABI
ROW = 7
FOREVER_NS = 1 << 62
F_SEAL_FUTURE_WRITE = 0x10  # linux/fcntl.h
_ONE_SIZE = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


def table(
    word: int,
    *,
    size: int = abi.TABLE_SIZE,
    magic: int = MAGIC,
    deadline: int = FOREVER_NS,
    operations: int = 0,
    next_row: int = 0,
) -> int:
    """Descriptor of a rate table whose row 7 has this word for every kind of entry, and as its fallback.

    Args:
        operations: the row's `WORD_OPERATIONS`.
        next_row: the words of row 8.
    """
    header = [magic, 1, deadline, abi.ROWS, 0, 0, 0, 0]
    row = [word] * 4 + [0, operations, word, 0]
    words = header + [0] * abi.ROW_WORDS * (ROW - 1) + row + [next_row] * abi.ROW_WORDS
    descriptor = os.memfd_create("fake-rates", os.MFD_ALLOW_SEALING)
    os.write(descriptor, b"".join(word.to_bytes(8, "little") for word in words))
    os.ftruncate(descriptor, size)
    return sealed(descriptor, _ONE_SIZE | F_SEAL_FUTURE_WRITE)


def page(size: int = abi.PAGE_SIZE) -> int:
    """Descriptor of a counter page."""
    descriptor = os.memfd_create("fake-counts", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    return sealed(descriptor, _ONE_SIZE)


def sheet(block: bytes = b"", size: int = abi.SHEET_SIZE) -> int:
    """Descriptor of a sheet that begins with this block."""
    descriptor = os.memfd_create("fake-sheet", os.MFD_ALLOW_SEALING)
    os.write(descriptor, block)
    os.ftruncate(descriptor, size)
    return sealed(descriptor, _ONE_SIZE | F_SEAL_FUTURE_WRITE)


def sealed(descriptor: int, seals: int) -> int:
    """The same memfd, with these seals."""
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


def answer(**changes: Any) -> bytes:
    """A proper answer, with changes."""
    return json.dumps({"abi": abi.ABI, "row": ROW, "lease_ms": 1000, **changes}).encode()


class FakeAgent:
    """Listens on `app.sock` and hands each connection, with what was said on it, to `respond`.

    Attributes:
        hellos: the registrations that came, as JSON.
        connections: those that came, open until the end.

    Args:
        uid: the user that it is to its peers, whoever runs the tests.
    """

    def __init__(
        self, run_dir: Path, respond: Callable[[socket.socket, dict[str, Any]], None], uid: int | None = None
    ) -> None:
        self.run_dir = run_dir
        self.hellos: list[dict[str, Any]] = []
        self.connections: list[socket.socket] = []
        self._respond = respond
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(run_dir / "app.sock"))
        os.chmod(run_dir / "app.sock", 0o666)
        own = os.geteuid()
        os.seteuid(own if uid is None else uid)
        try:
            self._listener.listen(16)  # the kernel remembers who did (SO_PEERCRED)
        finally:
            os.seteuid(own)
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> FakeAgent:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(30)
        self._listener.close()
        for connection in self.connections:
            connection.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections.append(connection)
            connection.settimeout(PATIENCE_S)
            try:
                self.hellos.append(json.loads(connection.recv(1 << 17)))
                self._respond(connection, self.hellos[-1])
            except (OSError, ValueError):  # the application went away
                continue


def counts(descriptor: int) -> list[int]:
    """What a counter page says just now."""
    with mmap.mmap(descriptor, abi.PAGE_SIZE, prot=mmap.PROT_READ) as mapped:
        words = memoryview(mapped[:]).cast("Q")
        return list(words[abi.PAGE_COUNTS : abi.PAGE_COUNTS + abi.PAGE_COUNT_WORDS])
