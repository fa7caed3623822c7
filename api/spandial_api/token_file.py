"""The tokens' file: changed by the command line, one change at a time, and read anew by a running agent."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from spandial_api.tokens import Token, Tokens, digest_of, new_token

__all__ = ["OPERATOR", "TokenFile"]

OPERATOR = "operator"
"""The token that the first start makes; of this one its owner finds a copy in the file `token`."""

_LONGEST = 1 << 20  # bytes

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

        Raises OSError where there is no token and none can be written.
        """
        try:
            with self._locked():
                self._make()
        except OSError:
            if not (copy := _read(self.operator_path)):
                raise
            self.tokens = Tokens([_operator(copy)])
        if (copy := _read(self.operator_path)) and self.refresh().find(copy) is None:
            self._warn(f"the token in {self.operator_path} is none of those in {self.path}, and lets nobody in.")

    def read(self) -> Tokens:
        """What is in the file. Raises OSError, ValueError that names it."""
        with open(self.path, "rb") as file:
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
            status = os.stat(self.path)
            version = (status.st_mtime_ns, status.st_ino, status.st_size)
            if version == self._version:
                return self.tokens
            self._version = version
            self.tokens = self.read()
            self.trouble = ""
        except (OSError, ValueError) as error:
            if isinstance(error, OSError):
                self._version = None
            self._say(f"the tokens cannot be read ({error}): those from before still hold.")
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
        if not self.path.exists():
            self._write(Tokens([_operator(_read_or_make(self.operator_path))]))

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
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)


def _operator(plain: str) -> Token:
    return Token(OPERATOR, digest_of(plain), "admin", created=time.time())


def _read(path: Path) -> str:
    """A token; empty where there is none that can be read."""
    with contextlib.suppress(OSError):
        return path.read_text(errors="surrogateescape").strip()
    return ""


def _read_or_make(path: Path) -> str:
    """A token, made in a file that only its owner can read. Raises OSError."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        token = path.read_text(errors="surrogateescape").strip()
        if token:
            return token
        descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
        os.fchmod(descriptor, 0o600)
    token = new_token()
    with os.fdopen(descriptor, "w") as file:
        file.write(token + "\n")
        file.flush()
        os.fsync(file.fileno())
    return token
