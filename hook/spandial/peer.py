"""Who listens on the agent's socket, and whether this process obeys him.

The kernel says who it is, as he was when he began to listen and as this process's namespaces see him (SO_PEERCRED,
unix(7)). Obeyed are root; the process's own user; who is outside of its pid namespace, which is how the node's agent
looks from a container, whatever users that one knows; and the user that a file of root's names.
"""

from __future__ import annotations

import os
import socket
import stat
import struct

__all__ = ["UID_FILE", "Stranger", "check_peer"]

UID_FILE = "agent.uid"

_PEERCRED = 17  # asm-generic/socket.h
_UCRED = struct.Struct("iII")
_NOBODY = 65534
_LONGEST = 32  # bytes of the file
_ONLY_OWNER_WRITES = 0o022


class Stranger(Exception):
    """Somebody listens whom this process does not obey; says whom it found."""


def check_peer(connection: socket.socket, run_dir: str) -> None:
    """Raises Stranger, OSError.

    Args:
        connection: connected to the agent's socket.
        run_dir: where that is, and may be the file that names a user.
    """
    pid, uid, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, _PEERCRED, _UCRED.size))
    if uid == 0 or pid == 0:
        return
    who = f"process {pid} of user {uid} listens there"
    if uid in _overflow_uids():
        raise Stranger(f"{who}, which may be any user that this process's user namespace does not know")
    own = os.geteuid()
    if uid == own:
        return
    path = os.path.join(run_dir, UID_FILE)
    named, why = _named_uid(path)
    if uid != named:
        raise Stranger(f"{who}; obeyed are root, user {own}, and whom {path} names: {why}")


def _overflow_uids() -> set[int]:
    """How a user looks whom this user namespace does not know (user_namespaces(7))."""
    try:
        with open("/proc/sys/kernel/overflowuid") as file:
            return {_NOBODY, int(file.read(_LONGEST))}
    except (OSError, ValueError):
        return {_NOBODY}


def _named_uid(path: str) -> tuple[int | None, str]:
    """The user that a file names if nobody but root can have written it, and in words what was found."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        return None, error.strerror or str(error)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            return None, "it is no file of its own"
        if found.st_uid != 0 or found.st_mode & _ONLY_OWNER_WRITES:
            return None, "others than root can write it"
        text = os.read(descriptor, _LONGEST).decode("ascii").strip()
        return int(text), f"user {int(text)}"
    except (OSError, ValueError) as error:
        return None, f"it holds no number of a user ({error})"
    finally:
        os.close(descriptor)
