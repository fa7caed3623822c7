"""The link to the node's agent: register, map the table, watch the lease, publish counts, come back.

Everything happens in one daemon thread. The application never waits for it, and nothing here raises into it:
whatever fails is tried again later, and the last known rates hold until their lease ends.
"""

from __future__ import annotations

import array
import atexit
import json
import logging
import os
import random
import select
import socket
import threading
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from spandial import abi
from spandial.clock import boottime_ns, namespace_offset_ns
from spandial.labels import Labels
from spandial.memory import Refused, map_memory
from spandial.peer import Stranger, check_peer
from spandial.sheet import OperationRates

if TYPE_CHECKING:
    from spandial.decider import Decider

__all__ = ["Link"]

_logger = logging.getLogger("spandial")

_ANSWER_TIMEOUT_S = 2.0
_MESSAGE_MAX = 65536
_DESCRIPTORS = 3  # table, counter page, sheet
_RETRY_FIRST_S = 0.05
_RETRY_LAST_S = 0.75  # an agent that returns is found within a second
_RETRY_REFUSED_S = 5.0
_WAKE_S = 1.0  # how often counts are published and the lease is looked at while nothing happens
_LAPSED_WAKE_S = 0.2


class _OtherVersion(Exception):
    """The agent speaks an older ABI version, which this process speaks, too."""


class _Table:
    """The agent's table as this process sees it, this process's row in it, and its operations' rates."""

    operations: OperationRates | None

    def __init__(self, version: int, descriptor: int, row: int, sheet: int) -> None:
        if not abi.DEFAULT_ROW <= row < abi.ROWS:
            raise Refused(f"row {row} is outside the table")
        words = map_memory(descriptor, abi.TABLE_SIZE, "rate table", may_be_map=True).cast("Q")
        if words[abi.HEADER_MAGIC] != abi.MAGIC | version:
            raise Refused(f"the table does not begin with ABI version {version}")
        self._words = words
        self._offset_ns = namespace_offset_ns()
        self.row = words[row * abi.ROW_WORDS : (row + 1) * abi.ROW_WORDS]
        self.operations = OperationRates(self.row, words, map_memory(sheet, abi.SHEET_SIZE, "sheet"))

    def lease_ends_in(self) -> float:
        """Seconds until the lease runs out; negative when it has."""
        return float(self._words[abi.HEADER_LEASE] - boottime_ns(self._offset_ns)) / 1e9


@lru_cache(maxsize=1)
def _version() -> str:
    """This package's; empty where it cannot be found out."""
    try:
        from importlib import metadata  # takes a while, and is in the thread of the link

        return metadata.version("spandial")
    except Exception:  # not installed, or no file may be opened: an agent only shows it
        return ""


def _log(level: int, message: str, *arguments: object) -> None:
    try:
        _logger.log(level, message, *arguments)
    except Exception:  # the application's own filter or handler: it must not end the link
        pass


def _frozen(words: Sequence[int]) -> array.array[int]:
    return array.array("Q", words)


class Link:
    """Keeps a sampler on the node's dial.

    Args:
        labels: who this process is.
        decider: what decides in this process. The agent puts its default word where no rule says otherwise.
        run_dir: where the agent's `app.sock` is.
    """

    def __init__(self, labels: Labels, decider: Decider, run_dir: str) -> None:
        self._labels = labels
        self._decider = decider
        self._run_dir = run_dir
        self._path = os.path.join(run_dir, "app.sock")
        self._told: set[str] = set()
        self._forget()
        os.register_at_fork(after_in_child=self._after_fork)
        atexit.register(self._publish)

    def start(self) -> None:
        """Begin in the background. Where no thread can be had, the default holds."""
        try:
            threading.Thread(target=self._run, name="spandial-link", daemon=True).start()
        except RuntimeError as error:
            self._tell_once("thread", "no thread for the link to the agent (%s); the default rate holds", error)

    def _forget(self) -> None:
        self._socket: socket.socket | None = None
        self._connecting: socket.socket | None = None
        self._table: _Table | None = None
        self._page: memoryview | None = None
        self._base = self._decider.counts()
        self._lapsed = False
        self._abi = abi.ABI
        self._retry_s = _RETRY_FIRST_S
        self._retry_at = 0.0

    def _after_fork(self) -> None:
        """In the child: nothing of the parent's is used but a copy of its last rates, and their lease."""
        table = self._table
        for connection in (self._socket, self._connecting):
            if connection is not None:
                connection.close()  # the child's copy of the descriptor only
        self._decider.freeze()
        self._forget()
        if table is not None:
            self._table = _Inherited(table)
        self.start()

    def _run(self) -> None:
        while True:
            try:
                if self._socket is None and time.monotonic() >= self._retry_at:
                    self._connect()
                self._watch_lease()
                self._wait()
            except Exception as error:  # nothing may end the thread: the rates would stay for ever
                self._tell_once("bug", "the link to the agent failed unexpectedly: %r", error)
                self._disconnect(_RETRY_REFUSED_S)

    def _connect(self) -> None:
        connection = self._connecting = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            connection.settimeout(_ANSWER_TIMEOUT_S)
            connection.connect(self._path)
            check_peer(connection, self._run_dir)
            self._register(connection)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            connection.close()
            if self._table is None:
                self._tell_once("absent", "no agent at %s yet (%s); the default rate holds", self._path, error)
            else:
                message = "the agent at %s is gone (%s); its last rates hold until their lease ends"
                self._tell_once("absent", message, self._path, error)
            self._disconnect(self._retry_s)
            self._retry_s = min(self._retry_s * 2, _RETRY_LAST_S)
        except _OtherVersion:
            connection.close()
            self._disconnect(0)
        except Stranger as stranger:
            connection.close()
            self._tell_once("stranger", "nobody at %s is obeyed: %s", self._path, stranger)
            self._disconnect(_RETRY_LAST_S)
        except Refused as refusal:
            connection.close()
            self._abi = abi.ABI
            self._tell_once("refused", "the agent refused this process: %s", refusal)
            self._disconnect(_RETRY_REFUSED_S)

    def _register(self, connection: socket.socket) -> None:
        hello = {
            "abi": self._abi,
            "hook": _version(),
            **self._labels.main,
            "tenant": self._labels.tenant,
            "attributes": dict(self._labels.others),
            "pid": os.getpid(),
            "default": self._decider.default,
        }
        connection.send(json.dumps(hello, ensure_ascii=False).encode(errors="surrogatepass"))
        message, descriptors, _, _ = socket.recv_fds(connection, _MESSAGE_MAX, _DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
        try:
            answer = json.loads(message)
            if "error" in answer:
                older = answer.get("abi")
                if older in abi.SPOKEN and older < self._abi:
                    self._abi = older
                    raise _OtherVersion
                raise Refused(answer["error"])
            if answer["abi"] != self._abi:
                raise Refused(f"it speaks ABI version {answer['abi']}, this process speaks {self._abi}")
            # The kernel holds back what a process at its limit of open files cannot take.
            if (came := len(descriptors)) != _DESCRIPTORS:
                raise Refused(f"{came} descriptors arrived, not {_DESCRIPTORS}: is the limit of open files reached?")
            table = _Table(self._abi, descriptors[0], answer["row"], descriptors[2])
            page = map_memory(descriptors[1], abi.PAGE_SIZE, "counter page", writable=True).cast("Q")
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        connection.setblocking(False)
        self._base = self._decider.counts()
        self._socket, self._table, self._page = connection, table, page
        self._retry_s, self._lapsed = _RETRY_FIRST_S, False
        self._decider.obey(table.row, table.operations)
        self._told.clear()
        self._publish()
        _log(logging.INFO, "linked to the agent at %s, row %d", self._path, answer["row"])

    def _disconnect(self, retry_s: float) -> None:
        """Stop talking to the agent. The table stays mapped: its last rates hold until its lease ends."""
        if self._socket is not None:
            self._socket.close()
            self._abi = abi.ABI  # an agent that comes may be newer
        self._socket = self._page = None
        self._retry_at = time.monotonic() + retry_s * random.uniform(0.7, 1.0)

    def _watch_lease(self) -> None:
        table = self._table
        if table is None:
            return
        expired = table.lease_ends_in() <= 0
        if expired and not self._lapsed:
            fallback = table.row[abi.WORD_FALLBACK]
            self._decider.obey([fallback] * abi.ROW_WORDS)
            _log(
                logging.WARNING,
                "the agent's lease ran out; the fallback rate holds until it returns",
            )
        elif self._lapsed and not expired:
            self._decider.obey(table.row, table.operations)
            _log(logging.WARNING, "the agent's lease is renewed; its rates hold again")
        self._lapsed = expired

    def _wait(self) -> None:
        wait = _LAPSED_WAKE_S if self._lapsed else _WAKE_S
        if self._table is not None and not self._lapsed:
            wait = min(wait, max(self._table.lease_ends_in(), 0.0))
        if self._socket is None:
            time.sleep(max(min(wait, self._retry_at - time.monotonic()), 0.001))
            return
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        if not poll.poll(wait * 1000):
            self._publish()
            return
        try:
            message = self._socket.recv(_MESSAGE_MAX)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if not message:
            self._disconnect(self._retry_s)
            return
        self._publish(int(json.loads(message).get("publish", 0)))

    def _publish(self, request: int | None = None) -> None:
        """Copy the counts since registration to the counter page; then say which request that answers."""
        page = self._page
        if page is None:
            return
        first = abi.PAGE_COUNTS
        counts = [now - then for now, then in zip(self._decider.counts(), self._base)]
        page[first : first + len(counts)] = memoryview(_frozen(counts))
        turns = self._decider.turns()
        for entry in range(len(abi.EntryKind)):
            remote = entry * abi.PAGE_KIND_STRIDE + abi.PAGE_REMOTE
            turns[2 * entry + 1] = max(0, turns[2 * entry + 1] - sum(self._base[remote : remote + 2]))
        page[abi.PAGE_TURNS : abi.PAGE_TURNS + len(turns)] = memoryview(_frozen(turns))
        if request is not None:
            page[abi.PAGE_PUBLISHED] = request & 0xFFFFFFFFFFFFFFFF

    def _tell_once(self, topic: str, message: str, *arguments: object) -> None:
        if topic not in self._told:
            self._told.add(topic)
            _log(logging.WARNING, message, *arguments)


class _Inherited(_Table):
    """What a forked child knows of its parent's table: a copy, and the lease as it was."""

    def __init__(self, table: _Table) -> None:
        self.row = memoryview(_frozen(table.row))
        self.operations = None  # its lease ends once, and for ever
        table._offset_ns = namespace_offset_ns()  # a child may be in another time namespace than its parent
        self._ends_at = time.monotonic() + table.lease_ends_in()

    def lease_ends_in(self) -> float:
        return self._ends_at - time.monotonic()
