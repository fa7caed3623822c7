"""The end of a child, held up by ptrace(2): it has done everything, and its process can still be looked at."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable

__all__ = ["at_end", "hold_at_end"]

# linux/ptrace.h
_PTRACE_CONT = 7
_PTRACE_SEIZE = 0x4206
_PTRACE_O_TRACEEXIT = 0x40
_ENDS = signal.SIGTRAP | 6 << 8  # PTRACE_EVENT_EXIT

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def hold_at_end(pid: int) -> None:
    """Have a child stop where it is about to end, whatever it executes until then. The same thread calls `at_end`."""
    _ptrace(_PTRACE_SEIZE, pid, _PTRACE_O_TRACEEXIT)


def at_end(pid: int, look: Callable[[], None]) -> None:
    """Wait for the child's end, and call `look` just before; if the child is killed it may be too late for that."""
    while True:
        came = os.waitid(os.P_PID, pid, os.WEXITED | os.WSTOPPED | os.WNOWAIT)
        assert came is not None
        if came.si_code != os.CLD_TRAPPED:
            return
        try:
            if came.si_status == _ENDS:
                look()
        finally:
            _ptrace(_PTRACE_CONT, pid, 0 if came.si_status == _ENDS else came.si_status)


def _ptrace(request: int, pid: int, data: int) -> None:
    if _libc.ptrace(request, pid, None, data) == -1:
        raise OSError(ctypes.get_errno(), "ptrace")
