"""Processes as /proc shows them (proc(5), cgroups(7))."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from spandial.labels import LABEL_MAX, Labels, labels_from_environ
from spandial_agent.text import text_of

__all__ = [
    "NAMED",
    "Process",
    "Traits",
    "all_pids",
    "ancestors",
    "read_process",
    "read_traits",
    "socket_inodes",
    "thread_group",
]

NAMED = "environment names a service"  # why most processes are targets
_PROC = Path("/proc")
_PF_KTHREAD = 0x00200000  # include/linux/sched.h


class Process(NamedTuple):
    """A process at one moment. Pid and start time together never come again before the host restarts.

    Attributes:
        start_time: clock ticks since boot.
        labels: what its environment says; all empty where that may not be read.
        image: the start of its stack, which is another after every exec (address space randomization) and the same
            after a fork; 0 where the agent may not trace it.
    """

    pid: int
    start_time: int
    name: str
    labels: Labels
    parent_pid: int = 0
    image: int = 0
    kernel_thread: bool = False


class Traits(NamedTuple):
    """What rules look at, beside the labels. Each is empty where it may not be read, or was not asked for.

    Attributes:
        exe: the executable's path.
        cmdline: the arguments, joined by spaces.
        cgroups: the path in each hierarchy, without repetitions; with cgroup v2 alone there is one.
        environ: None where it may not be read.
        ports: the TCP ports that it listens on, as far as they are known.
    """

    exe: str = ""
    cmdline: str = ""
    cgroups: tuple[str, ...] = ()
    environ: Mapping[str, str] | None = None
    ports: frozenset[int] = frozenset()


def read_process(pid: int) -> Process | None:
    """A process by its id; None if it is gone, or a zombie."""
    try:
        name, fields = _read_stat(pid)
        if fields[0] in (b"Z", b"X"):
            return None
        # Kernel threads have no memory: newer kernels answer ESRCH, as for a process that is gone.
        kernel_thread = bool(int(fields[6]) & _PF_KTHREAD)
        environ = b"" if kernel_thread else _read_environ(pid) or b""
    except OSError:
        return None
    variables = _variables(environ, b"OTEL_")
    return Process(
        pid,
        int(fields[19]),
        name,
        _shown(labels_from_environ(variables)),
        parent_pid=int(fields[1]),
        image=int(fields[25]),
        kernel_thread=kernel_thread,
    )


def ancestors(pid: int) -> Iterator[int]:
    """The parent of a process, the parent's parent, and so on."""
    while pid:
        try:
            pid = int(_read_stat(pid)[1][1])
        except OSError:
            return
        yield pid


def read_traits(pid: int, wanted: Collection[str] = Traits._fields) -> Traits:
    """Those traits of a process that are wanted, but its ports: `sockets.py` reads these. Never raises."""
    traits = Traits()
    if "exe" in wanted:
        traits = traits._replace(exe=_read_exe(pid))
    if "cmdline" in wanted:
        arguments = _read(pid, "cmdline").rstrip(b"\0").split(b"\0")
        traits = traits._replace(cmdline=b" ".join(arguments).decode(errors="replace"))
    if "cgroups" in wanted:
        # hierarchy-ID:controller-list:cgroup-path; the path may hold colons.
        paths = [line.split(":", 2)[-1] for line in _read(pid, "cgroup").decode(errors="replace").splitlines()]
        traits = traits._replace(cgroups=tuple(dict.fromkeys(paths)))
    if "environ" in wanted:
        try:
            environ = _read_environ(pid)
        except OSError:
            environ = None
        traits = traits._replace(environ=None if environ is None else _variables(environ))
    return traits


def socket_inodes(pid: int) -> set[int]:
    """The inodes of all sockets that a process has open; none where it may not be seen. Never raises."""
    inodes: set[int] = set()
    folder = f"{_PROC}/{pid}/fd"
    try:
        descriptors = os.listdir(folder)
    except OSError:
        return inodes
    for descriptor in descriptors:
        try:
            link = os.readlink(f"{folder}/{descriptor}")
        except OSError:  # closed meanwhile
            continue
        if link.startswith("socket:["):
            inodes.add(int(link[8:-1]))
    return inodes


def thread_group(pid: int) -> int | None:
    """The process that this is a thread of, which is itself for most; None if there is none. Zombies have one too."""
    for line in _read(pid, "status").splitlines():
        if line.startswith(b"Tgid:"):
            return int(line[5:])
    return None


def all_pids() -> Iterator[int]:
    for name in os.listdir(_PROC):
        if name.isdigit():
            yield int(name)


def _read_stat(pid: int) -> tuple[str, list[bytes]]:
    """The name, and the fields after it. Raises OSError."""
    stat = (_PROC / str(pid) / "stat").read_bytes()
    # The name may hold spaces and parentheses: fields are counted from the last one (proc(5)).
    name, _, rest = stat.partition(b"(")[2].rpartition(b")")
    return text_of(name), rest.split()


def _shown(labels: Labels) -> Labels:
    """Labels as they are shown, and as rules select them: whoever chose them says nothing with them that steers a
    terminal. The others are printable already."""
    service, version, env, tenant = (text_of(label, LABEL_MAX) for label in labels[:4])
    return Labels(service, version, env, tenant, labels.others)


def _read(pid: int, name: str) -> bytes:
    try:
        return (_PROC / str(pid) / name).read_bytes()
    except OSError:
        return b""


def _read_exe(pid: int) -> str:
    try:
        link = os.readlink(os.fsencode(_PROC / str(pid) / "exe"))
    except OSError:  # a kernel thread, or somebody else's process
        return ""
    # The file may have been replaced while the process runs.
    return link.removesuffix(b" (deleted)").decode(errors="replace")


def _read_environ(pid: int) -> bytes | None:
    """None where it is somebody else's, and the agent may not trace it (ptrace(2)): only its hook can name it."""
    try:
        return (_PROC / str(pid) / "environ").read_bytes()
    except PermissionError:
        return None


def _variables(environ: bytes, prefix: bytes = b"") -> dict[str, str]:
    """The variables whose names begin so. Of one that comes twice the first counts, as getenv(3) has it."""
    variables: dict[str, str] = {}
    for pair in environ.split(b"\0"):
        key, equals, value = pair.partition(b"=")
        if equals and key.startswith(prefix):
            variables.setdefault(key.decode(errors="replace"), value.decode(errors="replace"))
    return variables
