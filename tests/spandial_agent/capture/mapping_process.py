"""A process that maps files as it is told, line by line, as whatever user. Only the standard library: it drops to that
user."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from spandial_agent.processes.held import HeldProcess

__all__ = ["HOSTILE", "MappingProcess"]

HOSTILE = 64321  # nobody's number

_PROGRAM = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
files = [os.open(os.fsencode(path), os.O_RDONLY) for path in sys.argv[2:]]
user = int(sys.argv[1])
if user:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
print("ready", flush=True)
for line in sys.stdin:
    file, place = map(int, line.split())
    address = 0x200000000000 + 0x100000 * place
    assert libc.mmap(address, 4096, 5, 0x12, files[file], 0) == address  # MAP_PRIVATE | MAP_FIXED
    print("mapped", flush=True)
"""


class MappingProcess:
    """Opens files as this user, and maps them as another one.

    Args:
        files: they are known by their index.
        user: whom it becomes; 0 stays.
    """

    def __init__(self, files: Sequence[Path], user: int = 0) -> None:
        # -S -E: no other library with a name that is looked for.
        command = ["/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable, "-S", "-E", "-c"]
        self._process = subprocess.Popen(
            [*command, _PROGRAM, str(user), *map(str, files)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            errors="surrogateescape",
        )
        self.pid = self._process.pid
        self._expect("ready")

    def map(self, file: int, place: int = 0) -> None:
        """Map a file, in place of what is there."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{file} {place}\n")
        self._process.stdin.flush()
        self._expect("mapped")

    def held(self) -> HeldProcess:
        return HeldProcess(self.pid)

    @property
    def start_time(self) -> int:
        return int(Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[19])

    def _expect(self, word: str) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == f"{word}\n"

    def __enter__(self) -> MappingProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()
