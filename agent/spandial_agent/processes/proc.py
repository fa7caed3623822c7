"""Processes as /proc shows them (proc(5), cgroups(7)).

A pid is looked up once for each look at a process: what is read through the descriptor of its folder in /proc is that
process's, or an error once it has ended, whoever has its pid then. And no more is read than a bound: a process chooses
how long its environment and its command line are.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from spandial.labels import LABEL_MAX, Labels, labels_from_environ
from spandial_agent.processes.held import read_beginning
from spandial_agent.text import text_of

__all__ = [
    "NAMED",
    "Process",
    "Traits",
    "all_pids",
    "ancestors",
    "descriptors",
    "read_process",
    "read_traits",
    "same_process",
    "socket_inodes",
    "thread_group",
]

NAMED = "environment names a service"  # why most processes are targets
_PROC = Path("/proc")
_PF_KTHREAD = 0x00200000  # include/linux/sched.h
_READ_MAX = 128 << 10  # bytes of an environment or a command line; what lies beyond is not looked at
_VALUE_MAX = 32 << 10  # bytes of a variable's value
_ATTRIBUTES_MAX = 256  # resource attributes that are parsed
_VARIABLES = (b"OTEL_SERVICE_NAME", b"OTEL_RESOURCE_ATTRIBUTES")
_REMEMBERED_MAX = 1024  # characters of labels: longer ones are read anew


class Process(NamedTuple):
    """A process at one moment. Pid and start time together never come again before the host restarts.

    Attributes:
        start_time: clock ticks since boot.
        labels: what its environment says; all empty where that may not be read.
        image: the start of its stack, which is another after every exec (address space randomization) and the same
            after a fork; 0 where the agent may not trace it.
        uid: its effective user.
        cut: its environment is longer than what is read of it.
    """

    pid: int
    start_time: int
    name: str
    labels: Labels
    parent_pid: int = 0
    image: int = 0
    kernel_thread: bool = False
    uid: int = 0
    cut: bool = False

    @property
    def memorable(self) -> bool:
        """Another look at the same program need not read its environment again. An exec sets the image last: while it
        is known, so is the environment."""
        return self.image != 0 and sum(len(text) for pair in self.labels.pairs for text in pair) <= _REMEMBERED_MAX


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


def read_process(pid: int, known: Process | None = None) -> Process | None:
    """A process by its id; None if it is gone, or a zombie.

    Args:
        known: what an earlier look has found under this id. The labels of the same program are not read again.
    """
    try:
        with _folder(pid) as folder:
            name, fields = _read_stat(folder)
            if fields[0] in (b"Z", b"X"):
                return None
            # Kernel threads have no memory: newer kernels answer ESRCH, as for a process that is gone.
            kernel_thread = bool(int(fields[6]) & _PF_KTHREAD)
            # The folder's owner is the effective user, whatever is hidden of the process
            # (fs/proc/base.c, task_dump_owner).
            uid = os.fstat(folder).st_uid
            start_time, image = int(fields[19]), int(fields[25])
            found = Process(pid, start_time, name, Labels(), int(fields[1]), image, kernel_thread, uid)
            if kernel_thread:
                return found
            if known is not None and known.memorable and (known.start_time, known.image) == (start_time, image):
                return found._replace(labels=known.labels, cut=known.cut)
            environ = _read_environ(folder) or b""
    except OSError:
        return None
    return found._replace(labels=_shown(labels_from_environ(_named(environ))), cut=len(environ) >= _READ_MAX)


def same_process(process: Process) -> bool:
    """Whether its pid is still its own: it has not ended, and nobody else has taken it."""
    try:
        with _folder(process.pid) as folder:
            _, fields = _read_stat(folder)
    except (FileNotFoundError, ProcessLookupError):
        return False
    except OSError:  # out of descriptors or memory: nobody can tell now, and the next look can
        return True
    return fields[0] not in (b"Z", b"X") and int(fields[19]) == process.start_time


def ancestors(pid: int) -> Iterator[int]:
    """The parent of a process, the parent's parent, and so on."""
    while pid:
        try:
            with _folder(pid) as folder:
                pid = int(_read_stat(folder)[1][1])
        except OSError:
            return
        yield pid


def read_traits(
    pid: int,
    wanted: Collection[str] = Traits._fields,
    start_time: int | None = None,
    variables: Collection[str] | None = None,
) -> Traits:
    """Those traits of a process that are wanted, but its ports: `sockets.py` reads these. Never raises.

    Args:
        start_time: of the process that is meant. One that has its pid by now has no traits.
        variables: the names of those that are wanted of its environment; None: all.
    """
    try:
        with _folder(pid) as folder:
            if start_time is not None and int(_read_stat(folder)[1][19]) != start_time:
                return Traits()
            return _traits(folder, wanted, variables)
    except OSError:
        return Traits()


def _traits(folder: int, wanted: Collection[str], names: Collection[str] | None) -> Traits:
    traits = Traits()
    if "exe" in wanted:
        traits = traits._replace(exe=_read_exe(folder))
    if "cmdline" in wanted:
        arguments = _read(folder, "cmdline").rstrip(b"\0").split(b"\0")
        traits = traits._replace(cmdline=b" ".join(arguments).decode(errors="replace"))
    if "cgroups" in wanted:
        # hierarchy-ID:controller-list:cgroup-path; the path may hold colons.
        paths = [line.split(":", 2)[-1] for line in _read(folder, "cgroup").decode(errors="replace").splitlines()]
        traits = traits._replace(cgroups=tuple(dict.fromkeys(paths)))
    if "environ" in wanted:
        try:
            environ = _read_environ(folder)
        except OSError:
            environ = None
        traits = traits._replace(environ=None if environ is None else _variables(environ, names))
    return traits


def socket_inodes(pid: int) -> set[int]:
    """The inodes of all sockets that a process has open; none where it may not be seen. Never raises."""
    return {inode for inode in descriptors(pid) if inode}


def descriptors(pid: int) -> Iterator[int]:
    """Of each descriptor that a process has open, the inode of its socket, or 0 where it is none; nothing where it may
    not be seen. They are read one by one: a process has as many as it likes. Never raises."""
    try:
        with os.scandir(f"{_PROC}/{pid}/fd") as entries:
            for entry in entries:
                try:
                    link = os.readlink(entry.path)
                except OSError:  # closed meanwhile
                    link = ""
                yield int(link[8:-1]) if link.startswith("socket:[") else 0
    except OSError:
        return


def thread_group(pid: int) -> int | None:
    """The process that this is a thread of, which is itself for most; None if there is none. Zombies have one too."""
    try:
        with _folder(pid) as folder:
            status = _read(folder, "status")
    except OSError:
        return None
    return next((int(line[5:]) for line in status.splitlines() if line.startswith(b"Tgid:")), None)


def all_pids() -> Iterator[int]:
    for name in os.listdir(_PROC):
        if name.isdigit():
            yield int(name)


@contextmanager
def _folder(pid: int) -> Iterator[int]:
    """A descriptor of a process's folder: it stands for this process, and for no later one of its pid. Raises
    OSError."""
    folder = os.open(_PROC / str(pid), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield folder
    finally:
        os.close(folder)


def _read_stat(folder: int) -> tuple[str, list[bytes]]:
    """The name, and the fields after it. Raises OSError."""
    stat = read_beginning("stat", folder, _READ_MAX)
    # The name may hold spaces and parentheses: fields are counted from the last one (proc(5)).
    name, _, rest = stat.partition(b"(")[2].rpartition(b")")
    return text_of(name), rest.split()


def _shown(labels: Labels) -> Labels:
    """Labels as they are shown, and as rules select them: whoever chose them says nothing with them that steers a
    terminal. The others are printable already."""
    service, version, env, tenant = (text_of(label, LABEL_MAX) for label in labels[:4])
    return Labels(service, version, env, tenant, labels.others)


def _read(folder: int, name: str) -> bytes:
    try:
        return read_beginning(name, folder, _READ_MAX)
    except OSError:
        return b""


def _read_exe(folder: int) -> str:
    try:
        link = os.readlink(b"exe", dir_fd=folder)
    except OSError:  # a kernel thread, or somebody else's process
        return ""
    # The file may have been replaced while the process runs.
    return link.removesuffix(b" (deleted)").decode(errors="replace")


def _read_environ(folder: int) -> bytes | None:
    """None where it is somebody else's, and the agent may not trace it (ptrace(2)): only its hook can name it."""
    try:
        return read_beginning("environ", folder, _READ_MAX)
    except PermissionError:
        return None


def _named(environ: bytes) -> dict[str, str]:
    """The variables that name a service, found without a look at each of the others."""
    found = {}
    for name in _VARIABLES:
        value = _value(environ, name)
        if value is not None:
            # As many as count, and no more: a list of commas takes long to parse.
            parts = value.split(b",", _ATTRIBUTES_MAX)[:_ATTRIBUTES_MAX]
            found[name.decode()] = b",".join(parts).decode(errors="replace")
    return found


def _value(environ: bytes, name: bytes) -> bytes | None:
    """A variable's value; None where there is none. Of one that comes twice the first counts, as getenv(3) has it."""
    start = 0 if environ.startswith(name + b"=") else environ.find(b"\0" + name + b"=") + 1
    if start == 0 and not environ.startswith(name + b"="):
        return None
    start += len(name) + 1
    end = environ.find(b"\0", start)
    if end < 0:
        if len(environ) >= _READ_MAX:  # only its beginning was read
            return None
        end = len(environ)
    return environ[start : min(end, start + _VALUE_MAX)]


def _variables(environ: bytes, names: Collection[str] | None) -> dict[str, str]:
    """The variables of these names, or all. Of one that comes twice the first counts."""
    if names is not None:
        values = {name: _value(environ, os.fsencode(name)) for name in names}
        return {name: value.decode(errors="replace") for name, value in values.items() if value is not None}
    variables: dict[str, str] = {}
    for pair in environ.split(b"\0"):
        key, equals, value = pair.partition(b"=")
        if equals:
            variables.setdefault(key.decode(errors="replace"), value.decode(errors="replace"))
    return variables
