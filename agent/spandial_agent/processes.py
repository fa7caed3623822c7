"""Processes as /proc shows them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from spandial.labels import Labels, labels_from_environ

__all__ = ["Process", "all_pids", "read_process"]

_PROC = Path("/proc")


class Process(NamedTuple):
    """A process at one moment. Pid and start time together never come again before the host restarts."""

    pid: int
    start_time: int  # clock ticks since boot
    name: str
    labels: Labels


def read_process(pid: int) -> Process | None:
    """A process by its id; None if it is gone, or a zombie."""
    try:
        stat = (_PROC / str(pid) / "stat").read_bytes()
        environ = _read_environ(pid)
    except OSError:
        return None
    # The name may hold spaces and parentheses: fields are counted from the last one (proc(5)).
    name, _, rest = stat.partition(b"(")[2].rpartition(b")")
    fields = rest.split()
    if fields[0] in (b"Z", b"X"):
        return None
    variables = {}
    for pair in environ.split(b"\0"):
        key, equals, value = pair.partition(b"=")
        if equals and key.startswith(b"OTEL_"):
            variables[key.decode(errors="replace")] = value.decode(errors="replace")
    return Process(pid, int(fields[19]), name.decode(errors="replace"), labels_from_environ(variables))


def _read_environ(pid: int) -> bytes:
    try:
        return (_PROC / str(pid) / "environ").read_bytes()
    except PermissionError:  # somebody else's, and the agent may not trace it (ptrace(2)): only its hook can name it
        return b""


def all_pids() -> Iterator[int]:
    for name in os.listdir(_PROC):
        if name.isdigit():
            yield int(name)
