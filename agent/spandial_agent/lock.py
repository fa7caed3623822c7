"""The agent's folders, and the lock by which it is the only agent in them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from spandial_agent.errors import SpandialError
from spandial_api.folders import NotOurs, make_folder, open_file

__all__ = ["only_agent"]

_LOCK = "lock"
_FILE = os.O_RDWR | os.O_CREAT


@contextlib.contextmanager
def only_agent(run_dir: Path, state_dir: Path) -> Iterator[Callable[[], None]]:
    """Hold the run directory's lock: two agents would take each other's sockets.

    flock(2) asks for no right to write: who can open the file can keep an agent from starting. So it is its owner's
    alone. Raises SpandialError.

    Yields what makes folder and lock anew where somebody removed them; it raises SpandialError where that cannot be
    done, and where another agent has taken their place.
    """
    try:
        os.close(make_folder(state_dir, 0o700))
        lock = _lock_in(run_dir)
    except NotOurs as error:
        raise SpandialError(
            f"{error}. SPANDIAL_RUN_DIR and SPANDIAL_STATE_DIR must be folders that nobody else can change"
        ) from error
    except OSError as error:
        raise SpandialError(
            f"cannot use {error.filename} ({error.strerror}): run as root, "
            "or set SPANDIAL_RUN_DIR and SPANDIAL_STATE_DIR"
        ) from error
    locks = [lock]

    def renew() -> None:
        try:
            if not os.path.samestat(os.fstat(locks[-1]), os.lstat(run_dir / _LOCK)):
                raise SpandialError(f"another agent has taken {run_dir}: end one of the two")
        except FileNotFoundError:
            try:
                locks.append(_lock_in(run_dir))
            except OSError as error:
                raise SpandialError(f"cannot make {run_dir / _LOCK} anew: {error}") from error

    try:
        yield renew
    finally:
        for lock in locks:
            os.close(lock)


def _lock_in(run_dir: Path) -> int:
    """Raises SpandialError where another agent has it, OSError."""
    folder = make_folder(run_dir, 0o755)  # applications look for their socket in it
    try:
        return _locked(folder, run_dir)
    finally:
        os.close(folder)


def _locked(folder: int, run_dir: Path) -> int:
    """A descriptor of the file, which is locked. Raises SpandialError where another agent has it, OSError."""
    while True:
        lock = open_file(_LOCK, _FILE, folder, run_dir / _LOCK)
        try:
            of_anybody = os.fstat(lock).st_mode & (stat.S_IRWXG | stat.S_IRWXO)
            if of_anybody:  # an older version made it so
                os.fchmod(lock, 0o600)
            if _take(lock):
                if _is_there(lock, folder):
                    return lock
            elif not of_anybody or _is_served(run_dir / "api.sock"):
                raise SpandialError(f"another agent is running on {run_dir}")
            elif _is_there(lock, folder):  # no agent holds it, but somebody who opened it while he could
                os.unlink(_LOCK, dir_fd=folder)
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)


def _take(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_there(lock: int, folder: int) -> bool:
    """Whether the file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(lock), os.stat(_LOCK, dir_fd=folder, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as asking:
        try:
            asking.setblocking(False)
            asking.connect(str(path))
        except BlockingIOError:  # its queue is full
            return True
        except OSError:
            return False
    return True
