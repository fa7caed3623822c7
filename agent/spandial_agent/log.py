"""The agent's log: it never raises, never waits for its reader, and no process can fill a disk with it."""

from __future__ import annotations

import asyncio
import logging
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import structlog
from structlog.types import EventDict, FilteringBoundLogger, Processor

from spandial_agent.text import text_of

__all__ = ["Log", "LogLimit", "LogStream", "configure_log", "escape"]

_VALUE_MAX = 1000  # characters of one value
_ITEMS_MAX = 50  # of a collection
_DEPTH_MAX = 3
_TRACE_MAX = 60  # lines of a traceback: its last ones
_WINDOW_S = 60.0
_PER_WINDOW = 10  # lines of one event about one user's processes
_PER_EVENT = 60  # lines of one event, whoever they are about
_PER_LOG = 600  # lines of all events: their names are few, but some hold a reason
_KEYS_MAX = 1024
_TELL_S = 10.0


_Key: TypeAlias = "tuple[str, object]"  # an event, and whom it is about


_ALL: _Key = ("all events", None)


@dataclass
class _Window:
    began: float
    lines: int = 0
    left_out: int = 0


class LogStream:
    """Takes lines, and drops and counts those that cannot be written at once. Never raises.

    A disk may be full, a pipe's reader may be gone, or may not read: nobody waits for any of these.

    Args:
        descriptor: stays the caller's.
        notice: makes the line that tells how many were dropped, once lines can be written again.

    Attributes:
        unwritten: lines that were dropped.
    """

    def __init__(self, descriptor: int, notice: Callable[[int], str]) -> None:
        self.unwritten = 0
        self._told = 0
        self._descriptor = descriptor
        self._notice = notice
        self._torn = False  # the last line was written in part
        self._lock = threading.RLock()  # a destructor may fail, and be told, while a line is written

    def write(self, line: str) -> None:
        with self._lock:
            if not self._send(line):
                self.unwritten += 1
                return
            lacking = self.unwritten - self._told
            if lacking and self._send(self._notice(lacking)):
                self._told += lacking

    debug = info = warning = error = critical = exception = msg = write

    def _send(self, line: str) -> bool:
        data = b"\n" * self._torn + line.encode("utf-8", "backslashreplace") + b"\n"
        # A pipe that is ready has room for so much (poll(2), pipe(7)): the write does not wait.
        for begin in range(0, len(data), select.PIPE_BUF):
            part = data[begin : begin + select.PIPE_BUF]
            try:
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                written = os.write(self._descriptor, part) if poll.poll(0) else 0
            except (OSError, ValueError):
                written = 0
            if written:
                self._torn = True
            if written < len(part):
                return False
        self._torn = False
        return True


class LogLimit:
    """Leaves out what would be said too often, and counts it: whatever a process can do, it can do without end.

    Lines are counted by their event, and by the user whose process they are about (`uid`), or the library that says
    them (`library_log`); all of an event together; and all there are.

    Attributes:
        left_out: lines, since the start.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.left_out = 0
        self._clock = clock
        self._lock = threading.RLock()  # a destructor may fail, and be told, while a line is written
        self._windows: dict[_Key, _Window] = {}
        self._owed: dict[_Key, int] = {}  # left out in windows that have ended, and not told yet

    def __call__(self, _logger: object, _method: str, event_dict: EventDict) -> EventDict:
        event, about = str(event_dict.get("event")), event_dict.get("uid", event_dict.get("library_log"))
        with self._lock:
            # Its own share first: what one user's processes say too often takes nothing from the others.
            if about is not None and not self._passes((event, about), _PER_WINDOW):
                raise structlog.DropEvent
            if not self._passes((event, None), _PER_EVENT if about is not None else _PER_WINDOW):
                raise structlog.DropEvent
            if not self._passes(_ALL, _PER_LOG):
                raise structlog.DropEvent
        return event_dict

    def ended(self) -> dict[_Key, int]:
        """How many lines were left out, of what, in the windows that have ended since this was asked the last time."""
        with self._lock:
            now = self._clock()
            for key in [key for key, window in self._windows.items() if now - window.began >= _WINDOW_S]:
                self._end(key)
            owed, self._owed = self._owed, {}
            return owed

    def _passes(self, key: _Key, most: int) -> bool:
        now = self._clock()
        if key in self._windows and now - self._windows[key].began >= _WINDOW_S:
            self._end(key)
        if key not in self._windows:
            if len(self._windows) >= _KEYS_MAX:
                users = (known for known in self._windows if known[1] is not None)  # those of events are few
                events = (known for known in self._windows if known != _ALL)
                self._end(next(users, None) or next(events))
            self._windows[key] = _Window(now)
        window = self._windows[key]
        if window.lines >= most:
            window.left_out += 1
            self.left_out += 1
            return False
        window.lines += 1
        return True

    def _end(self, key: _Key) -> None:
        left_out = self._windows.pop(key).left_out
        if left_out:
            key = key if key in self._owed or len(self._owed) < _KEYS_MAX else (key[0], None)
            self._owed[key] = self._owed.get(key, 0) + left_out


def escape(_logger: object, _method: str, event_dict: EventDict) -> EventDict:
    """All text printable and bounded: nothing that another process chose steers a terminal or forges a line."""
    return {
        text_of(str(key)): _trace(value) if key == "exception" else _shown(value) for key, value in event_dict.items()
    }


def _shown(value: object, depth: int = 0) -> Any:
    if value is None or isinstance(value, (bool, float)):
        return value
    if isinstance(value, (str, bytes)):
        return text_of(value, _VALUE_MAX)
    try:
        if isinstance(value, int):
            return value if value.bit_length() <= 64 else hex(value)[:_VALUE_MAX]
        if depth < _DEPTH_MAX and isinstance(value, Mapping):
            items = list(value.items())[:_ITEMS_MAX]
            return {text_of(str(key)): _shown(each, depth + 1) for key, each in items}
        if depth < _DEPTH_MAX and isinstance(value, (list, tuple, set, frozenset)):
            return [_shown(each, depth + 1) for each in list(value)[:_ITEMS_MAX]]
        return text_of(str(value), _VALUE_MAX)
    except Exception as error:  # of its own __str__
        return f"a {type(value).__name__} that cannot be shown ({type(error).__name__})"


def _trace(value: object) -> str:
    """A traceback keeps its lines, and none of them begins as a line of the log does."""
    return "\n".join(f"    {text_of(line, _VALUE_MAX)}" for line in str(value).splitlines()[-_TRACE_MAX:])


class Log:
    """What is written, and what is not.

    Args:
        descriptor: where lines go.
        how: "json": an object a line.
    """

    def __init__(self, descriptor: int, how: Literal["console", "json"], limit: LogLimit | None = None) -> None:
        json = how == "json"
        render: Processor = structlog.processors.JSONRenderer() if json else structlog.dev.ConsoleRenderer(colors=False)
        self._finish: list[Processor] = [
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            escape,
            render,
        ]
        self._limit = limit or LogLimit()
        self.stream = LogStream(descriptor, lambda count: self._line("log lines could not be written", count=count))
        self.failed = 0  # lines that could not be made

    @property
    def processors(self) -> list[Processor]:
        return [self._limit, *self._finish]

    def losses(self) -> dict[str, int]:
        """Lines that were lost, by reason."""
        return {"log_left_out": self._limit.left_out, "log_unwritten": self.stream.unwritten + self.failed}

    async def run(self) -> None:
        """Tell what was left out, until cancelled."""
        while True:
            await asyncio.sleep(_TELL_S)
            self.tell()

    def tell(self) -> None:
        """Say how many lines of which events were left out in the windows that have ended."""
        for (event, about), count in self._limit.ended().items():
            which = {} if about is None else {"about": about}
            self.stream.write(self._line("more were left out", of=event, **which, count=count))

    def _line(self, event: str, **values: object) -> str:
        said: Any = {"event": event, **values}
        for processor in self._finish:
            said = processor(None, "warning", said)
        return str(said)


class _Libraries(logging.Handler):
    """What libraries say by `logging`: uvicorn, asyncio, grpc."""

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger("spandial.libraries")
        say = log.error if record.levelno >= logging.ERROR else log.warning
        try:
            said = record.getMessage()
        except Exception:  # arguments that do not fit
            said = str(record.msg)
        say("a library says", library_log=record.name, said=said, exc_info=record.exc_info)


def configure_log(how: Literal["console", "json"], descriptor: int = 2) -> Log:
    """Have all that the agent and its libraries say go to a descriptor, by one way."""
    log = Log(descriptor, how)
    filtering: Any = structlog.make_filtering_bound_logger(logging.INFO)

    class NeverRaises(filtering):  # type: ignore[misc]
        def _proxy_to_logger(self, method_name: str, event: str | None = None, **values: Any) -> Any:
            try:
                return super()._proxy_to_logger(method_name, event, **values)
            except Exception:
                log.failed += 1

    wrapper: type[FilteringBoundLogger] = NeverRaises
    structlog.configure(processors=log.processors, wrapper_class=wrapper, logger_factory=lambda *_: log.stream)
    logging.basicConfig(handlers=[_Libraries()], level=logging.WARNING, force=True)
    logging.raiseExceptions = False
    threading.excepthook = lambda ended: _crashed(
        ended.thread.name if ended.thread else "", ended.exc_value or ended.exc_type()
    )
    sys.unraisablehook = lambda found: _crashed(text_of(repr(found.object)), found.exc_value or found.exc_type())
    return log


def _crashed(where: str, error: BaseException) -> None:
    structlog.get_logger("spandial.libraries").error("an exception that nobody took", where=where, exc_info=error)
