"""Redis, which says in `INFO commandstats` what it executed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import redis

from tests.e2e.programs.database import Database
from tests.e2e.programs.process import Done, executable
from tests.e2e.services import free_port

__all__ = ["Redis"]


class Redis(Database):
    """Kinds: the command's name as `INFO commandstats` has it, as "get" and "config|get"; "unknown", those it does not
    know. Errors: by their first word. The key `text` holds a text.

    Commands in a transaction that is discarded or fails before EXEC are in no count.
    """

    def __init__(self, folder: Path, environment: dict[str, str] | None = None) -> None:
        port, path = free_port(), folder / "redis.sock"
        command = [executable("redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
        command += ["--unixsocket", str(path), "--unixsocketperm", "777", "--dir", str(folder)]
        # A title would overwrite its environment, perhaps before an agent has read the labels there.
        command += ["--set-proc-title", "no"]
        self._looks = 0
        super().__init__(folder, port, path, command, environment)

    def prepare(self) -> None:
        self._admin.set("text", "x")
        self.served()

    def address(self, unix: bool = False) -> dict[str, Any]:
        """Arguments of a connection of redis-py."""
        return {"path": self.socket_path} if unix else {"host": "127.0.0.1", "port": self.port}

    def _admits(self) -> bool:
        self._admin = redis.Redis(unix_socket_path=self.socket_path, protocol=2, driver_info=None)
        try:
            return bool(self._admin.ping())
        except redis.ConnectionError:
            return False

    def _counted(self) -> Done:
        info: dict[str, Any] = self._admin.info("all")
        commands = {name.removeprefix("cmdstat_"): stat for name, stat in info.items() if name.startswith("cmdstat_")}
        # A command that is rejected, for its number of arguments say, is not among the calls.
        operations = {name: stat["calls"] + stat["rejected_calls"] for name, stat in commands.items()}
        operations["info"] = operations.get("info", 0) - self._looks
        self._looks += 1
        # What it does not know has no statistics but the error that it was answered with.
        known = sum(stat["failed_calls"] + stat["rejected_calls"] for stat in commands.values())
        operations["unknown"] = info["total_error_replies"] - known
        errors = {name: stat["count"] for name, stat in info.items() if name.startswith("errorstat_")}
        return Done(operations, {name.removeprefix("errorstat_"): count for name, count in errors.items()})
