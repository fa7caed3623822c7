"""What the database servers share: they run in a folder of their own, not as root, and count what they execute."""

from __future__ import annotations

import os
import pwd
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.e2e.programs.process import Done
from tests.e2e.services import Server

__all__ = ["Database", "server_folder", "unprivileged"]


@contextmanager
def server_folder() -> Iterator[Path]:
    """A temporary folder of the user that the servers run as, with a path short enough for a Unix socket."""
    folder = Path(tempfile.mkdtemp(prefix="spandial-"))
    try:
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        # Clients may run as anybody, and reach the Unix socket through it.
        folder.chmod(0o755)
        yield folder
    finally:
        shutil.rmtree(folder)


def unprivileged(folder: Path, command: list[str]) -> list[str]:
    """The command in that folder, and not as root, which PostgreSQL and MariaDB refuse. It ends with the tests, however
    these end."""
    user: list[str] = []
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        user = ["--reuid", str(nobody.pw_uid), "--regid", str(nobody.pw_gid), "--clear-groups"]
    # A MariaDB that starts deletes the temporary tables of every other whose TMPDIR is the same.
    return ["env", "-C", str(folder), f"TMPDIR={folder}", "setpriv", "--pdeathsig", "KILL", *user, *command]


class Database(Server, ABC):
    """A server on TCP, at 127.0.0.1, and on a Unix socket, with files in the folder."""

    def __init__(
        self, folder: Path, port: int, socket_path: Path, command: list[str], environment: dict[str, str] | None
    ) -> None:
        self.folder = folder
        self.port = port
        self._admin: Any = None  # the tests' own connection
        self._before = Done({}, {})
        url = f"tcp://127.0.0.1:{port}"
        super().__init__(unprivileged(folder, command), environment or {}, folder / "log", url, str(socket_path))

    def answers(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"the server ended with {self.process.returncode}")
        return self._admits()

    def served(self) -> Done:
        """What clients had it execute since the last call, by its own account: what they have the answers of, at the
        least."""
        now = self._counted()
        done, self._before = now.since(self._before), now
        return done

    def stop(self) -> None:
        if self._admin is not None:
            self._admin.close()
            self._admin = None
        super().stop()

    @abstractmethod
    def prepare(self) -> None:
        """Make what the clients expect to find."""

    @abstractmethod
    def _admits(self) -> bool:
        """Connect to it for what the tests themselves want."""

    @abstractmethod
    def _counted(self) -> Done:
        """What it executed since it was started."""
