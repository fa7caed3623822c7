"""Folders and files that the agent believes: its own user's, and nobody else can write or swap them.

A folder is opened name by name from the root, and each folder on the way is looked at by its descriptor: who could
write one of them could put another in the place of what lies below. A POSIX access control list that lets others write
shows in the group's bits (acl(5)), so the mode tells of it, too.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

__all__ = [
    "NotOurs",
    "check_file",
    "identity",
    "make_folder",
    "open_file",
    "open_folder",
    "remove_readable",
    "sync_folder",
]

_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_LINKS_MAX = 40  # on the way to a folder, as in the kernel (path_resolution(7))
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class NotOurs(PermissionError):
    """A folder or file that somebody else owns, or can write: says whose it is and what to do."""


def open_folder(path: Path) -> int:
    """A descriptor of a folder that is the agent's user's alone to write, and so is the way to it.

    Raises NotOurs, and other OSErrors.
    """
    return _open_folder(path, None)


def make_folder(path: Path, mode: int) -> int:
    """The same of one that is made if it is not there, with the folders above it (0755).

    Args:
        mode: the folder has no bits but these, whatever the umask says. One that is there and has more, for readers, is
            tightened; one that others could write to is refused: what lies in it may be theirs.
    """
    folder = _open_folder(path, mode)
    try:
        known = stat.S_IMODE(os.fstat(folder).st_mode)
        if known & ~mode & 0o777:
            os.fchmod(folder, known & mode)
    except OSError:
        pass  # a read-only disk: what is in the folder is its owner's alone all the same
    return folder


def open_file(name: str, flags: int, folder: int, path: Path) -> int:
    """A descriptor of a regular file in an opened folder, or of one made for its owner alone.

    Args:
        path: of the file, as it is to be named.

    Raises NotOurs for a symbolic link, somebody else's file and one that others can write; and other OSErrors.
    """
    more = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        descriptor = os.open(name, flags & ~os.O_TRUNC | more, 0o600, dir_fd=folder)
    except OSError as error:
        if _is_link(name, folder):
            raise NotOurs(f"{path} is a symbolic link, and none is followed there: remove it") from None
        error.filename = str(path)
        raise
    try:
        _check_file(os.fstat(descriptor), path)
        if flags & os.O_TRUNC:
            os.ftruncate(descriptor, 0)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def check_file(path: Path) -> None:
    """Have a file, if it is there, be its owner's alone. Raises NotOurs, and other OSErrors.

    It is not opened: closing it would take away the locks that SQLite holds (sqlite.org/howtocorrupt.html, 2.2).
    """
    try:
        descriptor = os.open(path, _LOOK)
    except FileNotFoundError:
        return
    try:
        known = os.fstat(descriptor)
        _check_file(known, path)
        if known.st_mode & _OTHERS:
            os.chmod(f"/proc/self/fd/{descriptor}", stat.S_IMODE(known.st_mode) & ~_OTHERS)
    finally:
        os.close(descriptor)


def remove_readable(path: Path) -> None:
    """Remove a file that others can read: one of them may hold a lock on it. Raises OSError."""
    try:
        known = os.lstat(path)
    except FileNotFoundError:
        return
    if known.st_mode & _OTHERS:
        os.unlink(path)


def identity(path: Path) -> tuple[int, int] | None:
    """Which file has this name now: device and inode; None where there is none. Raises OSError."""
    try:
        known = os.lstat(path)
    except FileNotFoundError:
        return None
    return known.st_dev, known.st_ino


def sync_folder(path: Path) -> None:
    """Have the names in a folder reach the disk. Raises OSError."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _open_folder(path: Path, mode: int | None) -> int:
    """Args: mode: of the folder if it is to be made; None: it must be there."""
    way = Path("/")
    names = list(Path(os.path.abspath(path)).parts[1:])
    links = 0
    folder = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        while names:
            name = names.pop(0)
            _check_above(os.fstat(folder), way)
            below = way / name
            if mode is not None:
                _make(name, folder, below, 0o755 if names else mode)
            try:
                entry = os.open(name, _LOOK, dir_fd=folder)
            except OSError as error:
                error.filename = str(below)
                raise
            try:
                known = os.fstat(entry)
                _check_entry(known, os.fstat(folder), below)
                if stat.S_ISLNK(known.st_mode):
                    links += 1
                    if links > _LINKS_MAX:
                        raise NotOurs(f"{path} leads through more than {_LINKS_MAX} symbolic links")
                    target = Path(os.path.normpath(way / os.readlink(name, dir_fd=folder)))
                    names = [*target.parts[1:], *names]
                    os.close(entry)
                    entry, below = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), Path("/")
                elif not stat.S_ISDIR(known.st_mode):
                    raise NotADirectoryError(20, "Not a directory", str(below))
            except BaseException:
                os.close(entry)
                raise
            os.close(folder)
            folder, way = entry, below
        try:
            opened = os.open(f"/proc/self/fd/{folder}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            error.filename = str(path)
            raise
    finally:
        os.close(folder)
    try:
        _check_own(os.fstat(opened), path, "directory")
    except OSError:
        os.close(opened)
        raise
    return opened


def _make(name: str, folder: int, path: Path, mode: int) -> None:
    try:
        os.mkdir(name, mode, dir_fd=folder)
    except FileExistsError:
        return
    except OSError as error:
        try:
            os.stat(name, dir_fd=folder, follow_symlinks=False)
        except OSError:
            error.filename = str(path)
            raise error from None
        return  # it is there, and the disk takes nothing
    made = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        os.fchmod(made, mode)
    finally:
        os.close(made)


def _check_above(known: os.stat_result, path: Path) -> None:
    """Raises NotOurs for a folder on the way whose names somebody else could change."""
    if known.st_uid not in (0, os.geteuid()):
        raise NotOurs(
            f"{path} belongs to uid {known.st_uid}, who could swap what is in it: "
            f"'chown root {path}', or use another place"
        )
    if known.st_mode & _OTHERS_WRITE and not known.st_mode & stat.S_ISVTX:
        raise NotOurs(
            f"{path} has mode {_mode(known)}, and others could swap what is in it: "
            f"'chmod go-w {path}', or use another place"
        )


def _check_entry(known: os.stat_result, above: os.stat_result, path: Path) -> None:
    """Raises NotOurs for somebody else's name in a folder such as /tmp, where everybody makes some."""
    if above.st_mode & _OTHERS_WRITE and known.st_uid not in (0, os.geteuid()):
        raise NotOurs(f"{path} belongs to uid {known.st_uid}: remove it, or use another place")


def _check_own(known: os.stat_result, path: Path, what: str) -> None:
    own = os.geteuid()
    if known.st_uid != own:
        raise NotOurs(
            f"{path} belongs to uid {known.st_uid}: the {what} must belong to the agent's user, and nobody else may "
            f"write it; if what is in it can be trusted: 'chown {own} {path}'"
        )
    if known.st_mode & _OTHERS_WRITE:
        raise NotOurs(
            f"{path} has mode {_mode(known)}: the {what} must belong to the agent's user, and nobody else may write "
            f"it; if what is in it can be trusted: 'chmod go-w {path}'"
        )


def _check_file(known: os.stat_result, path: Path) -> None:
    if stat.S_ISLNK(known.st_mode):
        raise NotOurs(f"{path} is a symbolic link, and none is followed there: remove it")
    if not stat.S_ISREG(known.st_mode):
        raise NotOurs(f"{path} is no regular file: move it away")
    _check_own(known, path, "file")


def _mode(known: os.stat_result) -> str:
    return f"{stat.S_IMODE(known.st_mode):04o}"


def _is_link(name: str, folder: int) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except OSError:
        return False
