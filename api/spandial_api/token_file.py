"""The tokens' file: changed by the command line, one change at a time, and read anew by a running agent."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from spandial_api.folders import NotOurs, open_file, open_folder, sync_folder
from spandial_api.tokens import Token, Tokens, digest_of, new_token

__all__ = ["OPERATOR", "TokenFile"]

OPERATOR = "operator"
"""The token that the first start makes; of this one its owner finds a copy in the file `token`."""

_LONGEST = 1 << 20  # bytes
_LOCK = ".tokens.lock"

_Version = tuple[int, int, int]


class TokenFile:
    """`tokens.json` and `token` in a folder.

    Args:
        warn: called with a sentence when the file begins to be unusable.

    Attributes:
        path: of the hashes of all tokens.
        operator_path: of the operator's own copy of a token.
        tokens: as they were when the file could last be read.
        trouble: why the file cannot be used now; empty where it can.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None] = lambda sentence: None) -> None:
        self.path = folder / "tokens.json"
        self.operator_path = folder / "token"
        self.tokens = Tokens()
        self.trouble = ""
        self._folder = folder
        self._warn = warn
        self._version: _Version | None = None

    def make(self) -> None:
        """At the first start: a token for the operator, or the one that an older version has left.

        Raises NotOurs where others can write the folder or own what is in it, OSError where there is no token and none
        can be written.
        """
        try:
            os.close(open_folder(self._folder))
            if not os.path.lexists(self.path):
                with self._locked():
                    self._make()
        except NotOurs:
            raise
        except OSError:
            if not (copy := self._operators()):
                raise
            self.tokens = Tokens([_operator(copy)])
        if (copy := self._operators()) and self.refresh().find(copy) is None:
            self._warn(f"the token in {self.operator_path} is none of those in {self.path}, and lets nobody in.")

    def read(self) -> Tokens:
        """What is in the file. Raises OSError, ValueError that names it."""
        with open(self._open(self.path, os.O_RDONLY), "rb") as file:
            content = file.read(_LONGEST + 1)
        if len(content) > _LONGEST:
            raise ValueError(f"{self.path} is longer than {_LONGEST} bytes")
        try:
            return Tokens.from_json(content)
        except ValueError as error:
            raise ValueError(f"{self.path} holds no tokens: {error}") from error

    def refresh(self) -> Tokens:
        """The tokens as they are now. A file that cannot be read takes nothing away: those before stay."""
        try:
            status = os.lstat(self.path)
            version = (status.st_mtime_ns, status.st_ino, status.st_size)
            if version == self._version:
                return self.tokens
            self._version = version
            self.tokens = self.read()
            self.trouble = ""
        except (OSError, ValueError) as error:
            if isinstance(error, OSError):
                self._version = None
            held = "those from before still hold" if self.tokens else "no token lets anybody in over TCP until they can"
            self._say(f"the tokens cannot be read ({error}): {held}.")
        return self.tokens

    def change(self, change: Callable[[Tokens], Tokens]) -> None:
        """Replace the tokens, all or nothing, on disk before this returns. Without the operator's, its copy goes, too.

        Raises OSError, ValueError where the file cannot be used, and what the change raises: nothing was changed.
        """
        with self._locked():
            self._make()
            before = self.read()
            after = change(before)
            self._write(after)
            if OPERATOR in before and OPERATOR not in after:
                self.operator_path.unlink(missing_ok=True)

    def _make(self) -> None:
        if not os.path.lexists(self.path):
            self._write(Tokens([_operator(self._operators() or self._make_operators())]))

    def _operators(self) -> str:
        """The operator's copy; empty where there is none that can be read. Raises NotOurs."""
        try:
            descriptor = self._open(self.operator_path, os.O_RDONLY)
            with open(descriptor, errors="surrogateescape") as file:
                return file.read(_LONGEST).strip()
        except NotOurs:
            raise
        except OSError:
            return ""

    def _make_operators(self) -> str:
        """A token, made in a file that only its owner can read. Raises OSError."""
        token = new_token()
        descriptor = self._open(self.operator_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        with open(descriptor, "w") as file:
            os.fchmod(descriptor, 0o600)
            file.write(token + "\n")
            file.flush()
            os.fsync(descriptor)
        return token

    def _open(self, path: Path, flags: int) -> int:
        """A descriptor of a file in the folder. Raises NotOurs, other OSErrors."""
        folder = open_folder(self._folder)
        try:
            return open_file(path.name, flags, folder, path)
        finally:
            os.close(folder)

    def _say(self, sentence: str) -> None:
        if sentence != self.trouble:
            self._warn(sentence)
        self.trouble = sentence

    def _write(self, tokens: Tokens) -> None:
        text = tokens.to_json()
        if len(text.encode()) > _LONGEST:
            raise ValueError(f"{self.path} would be longer than {_LONGEST} bytes: 'spandial token rm' first")
        # mkstemp makes it readable for its owner only.
        descriptor, name = tempfile.mkstemp(prefix=".tokens-", dir=self._folder)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, self.path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
        sync_folder(self._folder)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        # A file of its own, and not the folder: whoever can open a folder can hold a lock on it.
        lock = self._open(self._folder / _LOCK, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def _operator(plain: str) -> Token:
    return Token(OPERATOR, digest_of(plain), "admin", created=time.time())
