"""The capture programs in the kernel, and the time they take."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["capture_programs", "run_times_kept", "wait_until_gone"]

_NAMES = ("on_receive", "on_send", "on_sys_exit")
_STATS = Path("/proc/sys/kernel/bpf_stats_enabled")
_PROGRAM_ID = re.compile(r"^prog_id:\s+(\d+)$", re.MULTILINE)


def capture_programs(pid: int | None = None) -> set[int]:
    """Ids of a process's capture programs, or of everybody's."""
    loaded = {program["id"] for program in _programs()}
    return loaded if pid is None else loaded & _held_by(pid)


def wait_until_gone(ids: set[int]) -> None:
    """The kernel frees programs some time after their last user has ended. Raises TimeoutError."""
    for _ in range(200):
        if not ids & capture_programs():
            return
        time.sleep(0.02)
    raise TimeoutError(f"BPF programs {sorted(ids)} are still loaded")


@contextmanager
def run_times_kept() -> Iterator[None]:
    """Let the kernel take the time of every program's runs, which costs some itself."""
    before = _STATS.read_text()
    _STATS.write_text("1")
    try:
        yield
    finally:
        _STATS.write_text(before)


def _programs() -> list[dict[str, int]]:
    listed = subprocess.run(["bpftool", "--json", "prog", "show"], check=True, capture_output=True, text=True)
    return [program for program in json.loads(listed.stdout) if program.get("name") in _NAMES]


def _held_by(pid: int) -> set[int]:
    """Ids of the programs that a process has descriptors of."""
    held: set[int] = set()
    for descriptor in Path(f"/proc/{pid}/fdinfo").iterdir():
        with suppress(OSError):  # closed meanwhile
            held.update(map(int, _PROGRAM_ID.findall(descriptor.read_text())))
    return held
