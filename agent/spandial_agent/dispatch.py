"""Records of the ring buffer on their way: to spans, to whoever watches, and to who looks for lost trace contexts."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import structlog

from spandial import abi
from spandial.abi import EntryKind, Event, Protocol
from spandial.labels import Labels
from spandial_agent.capture.capture import Capture
from spandial_agent.clock import KernelClock
from spandial_agent.processes.backlog import Backlog
from spandial_agent.processes.crowd import Crowded, SharedMap
from spandial_agent.propagation.watch import PropagationWatch
from spandial_agent.records.conversations import NOBODY, Call, Conversations
from spandial_agent.records.piece import Passed, Piece
from spandial_agent.records.record import Entry, connection_of, decode_entry, is_entry, tgid_of
from spandial_agent.records.redaction import PathRedaction, redact_path
from spandial_agent.records.watchers import Watchers
from spandial_agent.spans.exchanges import Peer
from spandial_agent.spans.pipeline import SpanPipeline
from spandial_agent.table.rates import RateTable
from spandial_agent.targets.states import KIND_NAMES
from spandial_agent.targets.target import REGISTERED, Target
from spandial_agent.targets.targets import Targets
from spandial_api.node_states import EntryEvent, ProtocolName, SpanStats

__all__ = ["RecordDispatch"]

_log = structlog.get_logger("spandial.dispatch")

_PROTOCOL_NAMES: dict[Protocol, ProtocolName] = {
    Protocol.HTTP1: "http/1",
    Protocol.HTTP2: "http/2",
    Protocol.POSTGRES: "postgresql",
    Protocol.MYSQL: "mysql",
    Protocol.REDIS: "redis",
}
_TORN = 16_384  # connections of which records are missing; of more, nothing is known of any
_ENDED = 1024  # processes
_BACKLOG = 65_536  # records that the event loop may be behind
_END_S = 0.3  # for what came last
_PIECE = 16  # records that are taken before the time is looked at: one may take a third of a millisecond
_SLICE_S = 0.002  # of taking records in one turn of the event loop; afterwards it has as long for everything else


class RecordDispatch:
    """All methods but `hand_over` run on the event loop's thread.

    Attributes:
        watchers: who watches kept entries.
        crowded: says whose records found no room.

    Args:
        spans: what makes spans of the entries of processes without a hook, if they are exported.
        propagation: what looks for lost trace contexts, where that is wanted.
        redact_paths: before anybody is shown them, or they become spans.
        clock: of the records.
    """

    def __init__(
        self,
        table: RateTable,
        targets: Targets,
        capture: Capture | None,
        spans: SpanPipeline | None = None,
        propagation: PropagationWatch | None = None,
        redact_paths: PathRedaction = "off",
        clock: KernelClock | None = None,
    ) -> None:
        self.watchers = Watchers(targets.rewrite)
        self._table = table
        self._targets = targets
        self._capture = capture
        self._spans = spans
        self._propagation = propagation
        self._redact_paths = redact_paths
        self._clock = clock or KernelClock()
        # Processes whose last records may still come; None for those with a hook.
        self._ended: SharedMap[int, Peer | None] = SharedMap(_ENDED)
        self._nobodys = 0  # entries and calls of processes that ended longer ago
        targets.emit = self._wants_entries
        targets.answers = spans is not None
        if spans is not None:
            spans.coming = lambda: self._handed_over.entries - self._taken.entries
            spans.lost_coming = self._lost_before_spans
        self.crowded = Crowded("records that the agent had not come to", _BACKLOG)
        self._backlog: Backlog[bytes, Piece] = Backlog(_BACKLOG, self._uid_of, self.crowded)
        self._working = False  # the event loop will look at the batches
        # Each is written by one thread only: by the ring buffer's, by the loop's.
        self._handed_over = Passed(0, 0)
        self._taken = Passed(0, 0)
        self._lost_records = self._lost_entries = 0
        self._shed = Passed(0, 0)
        self._bad_records = 0
        self._conversations = Conversations(self._operation_word)
        # Connections of which records were lost since the last piece, of the ring buffer's thread; None: too many.
        self._torn: set[int] | None = set()

    def forget(self) -> None:
        """The kernel's programs did not run for a while: what connections said meanwhile is not known."""
        self._conversations.forget()

    def hand_over(self, loop: asyncio.AbstractEventLoop, records: list[bytes]) -> None:
        """From the ring buffer's thread to the event loop."""
        for begin in range(0, len(records), _PIECE):
            records_of_piece = records[begin : begin + _PIECE]
            admitted = self._backlog.admit(records_of_piece)
            if len(admitted) != len(records_of_piece):
                self._lose(records_of_piece, admitted)
            if admitted:
                passed = Passed(len(admitted), sum(map(is_entry, admitted)))
                self._handed_over = self._handed_over.plus(passed)
                self._backlog.append(Piece(admitted, passed, self._torn))
                self._torn = set()
        if self._spans is not None:
            self._spans.come()
        if not self._working:
            self._working = True
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._work, loop)

    def shed(self) -> None:
        """Lose what was handed over and not taken yet: for the memory."""
        while piece := self._backlog.take():
            self._taken = self._taken.plus(piece.passed)
            self._shed = self._shed.plus(piece.passed)
        self._conversations.forget()

    def ending(self) -> None:
        """Nobody can ask any more what was lost."""
        if self._spans is not None:
            self._spans.ending()

    def close(self) -> None:
        """Take what was handed over and not taken yet, for a moment. The ring buffer is read no more, and the event
        loop stands still."""
        if self._spans is None:
            return
        until = time.monotonic() + _END_S
        while time.monotonic() < until and self._take_next():
            pass
        left = 0
        while piece := self._backlog.take():
            left += piece.passed.entries
        self._spans.give_up(left)

    def ended(self, target: Target) -> None:
        """A target's process ended; its last records may still come."""
        if self._spans is None:
            return
        process = _peer(target)
        if process is not None:
            self._spans.exited(target.pid)
        self._ended.put(target.uid, target.pid, process)

    def losses(self) -> dict[str, int]:
        """What was lost on the way, by reason."""
        lost = self._lost()
        found = {
            "watcher_slow": self.watchers.lost,
            "agent_slow": lost.entries,
            "agent_slow_others": lost.records - lost.entries,
            "bad_record": self._bad_records,
            "connections_forgotten": self._conversations.forgotten,
        }
        if self._spans is not None:
            found |= {"span_process_unknown": self._nobodys, **self._spans.losses()}
        return found

    def spans(self) -> SpanStats | None:
        """What became of the entries that are to be spans; None where none are exported."""
        if self._spans is None:
            return None
        return self._spans.spans()

    def _lost_before_spans(self) -> Mapping[str, int]:
        lost = {"span_process_unknown": self._nobodys, "agent_slow": self._lost().entries}
        if self._capture is not None:
            lost["ring_full"] = self._capture.losses()["ring_full"]
        return lost

    def _lost(self) -> Passed:
        return self._shed.plus(Passed(self._lost_records, self._lost_entries))

    def _wants_entries(self, labels: Labels, hooked: bool) -> bool:
        return self.watchers.wants(labels) or (self._spans is not None and not hooked)

    def _operation_word(self, row: int, kind: EntryKind, method: str, path: str) -> int | None:
        """What a rule by operation says to a process with this row."""
        if self._capture is None:
            return None
        operation_set = self._table.backend.read(row)[abi.WORD_OPERATIONS] >> 32
        rule = self._capture.find_operation(operation_set, kind, method, path)
        return self._table.backend.read(rule)[kind] if rule is not None else None

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take what was handed over, in slices: whoever makes many records, or long ones, holds up no change."""
        began = time.monotonic()
        while self._take_next():
            worked = time.monotonic() - began
            if worked > _SLICE_S:
                loop.call_later(worked, self._work, loop)
                return
        self._working = False
        if len(self._backlog):  # handed over before that was seen
            self._working = True
            loop.call_soon(self._work, loop)

    def _take_next(self) -> bool:
        """Whether there was anything."""
        piece = self._backlog.take()
        if piece is None:
            return False
        if piece.torn is None or piece.torn:
            self._conversations.forget(piece.torn)
        self._take(piece)
        self._taken = self._taken.plus(piece.passed)
        return True

    def _lose(self, records: Sequence[bytes], admitted: Sequence[bytes]) -> None:
        """There is no room for the others, which are of users who have very many."""
        kept = set(map(id, admitted))
        for record in records:
            if id(record) in kept:
                continue
            self._lost_records += 1
            self._lost_entries += is_entry(record)
            if self._torn is not None:
                self._torn.add(connection_of(record))
                if len(self._torn) > _TORN:
                    self._torn = None

    def _uid_of(self, record: bytes) -> int:
        """The user whose process a record is of; -1 where that is not known."""
        tgid = tgid_of(record)
        target = self._targets.get(tgid)
        if target is not None:
            return target.uid
        uid = self._ended.owner(tgid)
        return -1 if uid is None else uid

    def _take(self, records: Sequence[bytes]) -> None:
        for record in records:
            try:
                entry = decode_entry(record)
                if self._propagation is not None:
                    self._propagation.take(entry)
                if entry.event != Event.EXAMPLE:
                    self._pass_on(entry)
            except Exception as error:  # what one process sent takes no other's records away
                self._bad_records += 1
                if not isinstance(error, ValueError):
                    _log.warning("a record could not be taken", exc_info=error)

    def _pass_on(self, entry: Entry) -> None:
        target = self._targets.get(entry.tgid)
        said = self._conversations.read(entry, NOBODY if target is None else target.uid)
        if self._redact_paths != "off" and isinstance(said, Call) and not said.service:
            said = said._replace(path=redact_path(said.path, self._redact_paths))
        if self._spans is not None:
            process = _peer(target) if target is not None else self._ended.get(entry.tgid)
            if process is not None:
                self._spans.take(entry, said, process)
            elif target is None and entry.tgid not in self._ended:
                self._nobodys += isinstance(said, Call)
        if isinstance(said, Call) and entry.entered and self.watchers:
            self.watchers.offer(self._shown(entry, said, target.labels if target else Labels()))

    def _shown(self, entry: Entry, said: Call, labels: Labels) -> EntryEvent:
        """An entry as its watchers see it."""
        main: dict[str, Any] = {**labels.main}
        return EntryEvent.model_construct(
            time=self._clock.unix_s(entry.time_ns),
            pid=entry.tgid,
            **main,
            kind=KIND_NAMES[entry.kind],
            protocol=_PROTOCOL_NAMES[said.protocol],
            method=said.method,
            path=said.path,
            operation=said.operation.name,
            statement=said.operation.text,
            trace_id=f"{said.trace_id:032x}" if said.trace_id else "",
            parent_span_id=f"{said.span_id:016x}" if said.span_id else "",
            kept_by=said.kept_by,
            lost=0,
        )


def _peer(target: Target) -> Peer | None:
    """The process whose spans the agent makes; None for one with a hook, which makes its own."""
    if target.why == REGISTERED:
        return None
    return Peer(target.pid, target.process.start_time, target.labels, target.uid)
