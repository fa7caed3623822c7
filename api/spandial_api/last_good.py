"""The rules a second time, beside the store, for the day when the store is damaged.

`rules.json` holds all rules as they were some seconds ago, `rules.log` one line for each revision since. Both have
checksums. A line is written before a change is answered, and not waited for: it survives the agent's death, and the
store alone is what survives power loss.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from spandial_api.audit import Entry
from spandial_api.folders import check_file, sync_folder
from spandial_api.rules import RuleBook
from spandial_api.stored import parse_rule, rule_text, selector_key
from spandial_api.tables import UNREADABLE, row_sum

__all__ = ["LastGoodRules"]

_LOG_MAX = 16 << 20  # bytes: while no copy can be made, the log does not grow for ever
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_MORE = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC


class LastGoodRules:
    """Any thread may call anything at any time.

    Attributes:
        damage: what the last `load` could not read, one sentence each.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log_path = path.with_suffix(".log")
        self.damage: list[str] = []
        self._use = threading.Lock()  # of the log, and never for as long as a disk may take to store something
        self._saving = threading.Lock()
        self._saved = 0  # the revision of the copy that was saved last
        self._torn = False

    def save(self, book: RuleBook, *, alone: bool = False) -> None:
        """All or nothing; with what came later, unless it is to stand alone. Raises OSError."""
        rules = [[selector_key(rule.selector), rule_text(rule)] for rule in book.rules.values()]
        whole = {"revision": book.revision, "rules": rules, "sum": row_sum(book.revision, rules)}
        with self._saving:
            if book.revision < self._saved and not alone:
                return  # a newer one was saved while this one waited, and the log has forgotten what lies between
            _written(self.path, json.dumps(whole).encode()).replace(self.path)
            sync_folder(self.path.parent)  # before the log forgets anything
            with suppress(FileNotFoundError):
                self._shorten(math.inf if alone else book.revision)
            self._saved = book.revision
            sync_folder(self.path.parent)

    def _shorten(self, revision: float) -> None:
        """Keep of the log what came after a revision. Raises OSError, FileNotFoundError where there is no log.

        A disk may take long, and a commit waits for `add`: what is added meanwhile is put behind the rest at the end.
        """
        with self._use:
            size = os.stat(self.log_path).st_size
        lines = _read(self.log_path, 0, size).splitlines()
        part = _written(self.log_path, b"".join(line + b"\n" for line in lines if (_revision(line) or 0) > revision))
        with self._use:
            added = _read(self.log_path, size).lstrip(b"\n")  # it ended half a line that is left out now
            if added:
                with open(part, "ab") as file:
                    file.write(added)
            else:
                self._torn = False
            part.replace(self.log_path)

    def add(self, entries: Iterable[Entry]) -> None:
        """What is in the store since. Raises OSError."""
        lines = []
        for entry in entries:
            rows = [
                [selector_key(selector), None if after is None else rule_text(after)]
                for selector, _, after in entry.changes
            ]
            lines.append(json.dumps([entry.revision, rows, row_sum(entry.revision, rows)]) + "\n")
        text = "".join(lines).encode()
        with self._use:
            log = os.open(self.log_path, _MORE, 0o600)
            try:
                if os.fstat(log).st_size + len(text) > _LOG_MAX:
                    return
                if self._torn:  # what follows half a line is not to be lost with it
                    text = b"\n" + text
                self._torn = True
                self._torn = os.write(log, text) != len(text)
            finally:
                os.close(log)

    @property
    def is_there(self) -> bool:
        return self.path.exists()

    def load(self) -> RuleBook:
        """Raises FileNotFoundError where there is none, other OSErrors, and ValueError for one that is damaged."""
        self.damage = []
        for path in (self.path, self.log_path):
            check_file(path)
        lines = _lines(self.log_path)
        try:
            revision, rules = _base(self.path)
        except FileNotFoundError:
            if not lines or _revision(lines[0]) != 1:
                raise
            revision, rules = 0, {}
        except UNREADABLE as error:
            raise ValueError(f"{self.path} is damaged: {error}") from error
        for number, line in enumerate(lines, 1):
            try:
                of_line, rows = _line(line)
            except UNREADABLE:
                self.damage.append(f"line {number} of {self.log_path} is damaged")
                continue
            if of_line <= revision:
                continue
            if of_line != revision + 1:
                self.damage.append(f"{self.log_path} has no line of revision {revision + 1}")
                break
            revision = of_line
            for key, text in rows:
                rules.pop(key, None)
                if text is not None:
                    rules[key] = text
        try:
            return RuleBook.of([parse_rule(key, text) for key, text in rules.items()], revision)
        except UNREADABLE as error:
            raise ValueError(f"{self.path} is damaged: {error}") from error


def _base(path: Path) -> tuple[int, dict[str, str]]:
    """Raises OSError, one of UNREADABLE."""
    stored = json.loads(path.read_bytes())
    revision, rules = stored["revision"], stored["rules"]
    if not isinstance(revision, int):
        raise ValueError(f"{revision!r:.40} is no revision")
    if "sum" in stored and stored["sum"] != row_sum(revision, rules):  # those of older versions have none
        raise ValueError("it is not what was written")
    return revision, {str(key): str(text) for key, text in rules}


def _lines(path: Path) -> list[bytes]:
    """Raises OSError."""
    try:
        return path.read_bytes().splitlines()
    except FileNotFoundError:
        return []


def _line(line: bytes) -> tuple[int, list[Any]]:
    """Raises one of UNREADABLE."""
    revision, rows, checksum = json.loads(line)
    if checksum != row_sum(revision, rows):
        raise ValueError("it is not what was written")
    return revision, rows


def _revision(line: bytes) -> int | None:
    try:
        return _line(line)[0]
    except UNREADABLE:
        return None


def _read(path: Path, start: int, length: int = -1) -> bytes:
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(length)


def _written(path: Path, content: bytes) -> Path:
    """A file with this content, on disk, that can take the place of another."""
    part = path.with_name(path.name + ".part")
    with suppress(FileNotFoundError):
        part.unlink()
    with open(os.open(part, _NEW, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return part
