"""Somebody removes the sockets or the lock of a running agent: they are made anew, so that it can still be reached."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

from spandial_agent.errors import SpandialError
from spandial_agent.serving.binding import bind_unix
from spandial_api.folders import identity

__all__ = ["Renewal"]


class Renewal:
    """Asked every second: looks after the names in the run directory.

    Args:
        renew_lock: makes the folder and the lock anew where they are gone. Raises SpandialError where another agent has
            taken their place: its sockets are left alone.
        renew_application_socket: raises OSError.
        path: of the API's socket, which listens already.
        say: called with a sentence when something is made anew, or cannot be.
    """

    def __init__(
        self,
        renew_lock: Callable[[], None],
        renew_application_socket: Callable[[], None],
        path: Path,
        group: str,
        say: Callable[[str], object],
    ) -> None:
        self._renew_lock = renew_lock
        self._renew_application_socket = renew_application_socket
        self._path = path
        self._group = group
        self._say = say
        self._identity = identity(path)
        self._said = ""

    def __call__(self) -> socket.socket | None:
        """A socket in the place of the API's that was removed; None where nothing was."""
        try:
            self._renew_lock()
            self._renew_application_socket()
            if identity(self._path) == self._identity:
                self._said = ""
                return None
            listener = bind_unix(self._path, self._group)
            self._identity = identity(self._path)
        except (SpandialError, OSError) as error:
            self._tell(f"a file in {self._path.parent} is gone and cannot be made anew: {error}")
            return None
        self._tell(f"somebody removed {self._path}; it was made anew")
        return listener

    def _tell(self, sentence: str) -> None:
        if sentence != self._said:
            self._say(sentence)
        self._said = sentence
