"""Operations and the patterns that select them: `GET /pay*`, `/pkg.Service/*`, `nightly report`.

An operation is a request's method and path or route, a call's full method name, or a span's name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import translate
from functools import lru_cache
from typing import NamedTuple

__all__ = ["PATTERN_MAX", "OperationPattern", "glob_matcher", "parse_operation", "split_operation"]

PATTERN_MAX = 255  # characters

_METHOD = re.compile(r"([A-Z]{1,16}) (?=[/*])")
_GLOB = re.compile(r"[*?\[]")


class OperationPattern(NamedTuple):
    """A parsed pattern.

    Attributes:
        text: the pattern as written: a glob that a whole operation must match.
        method: the HTTP method that it names; empty where it names none.
        path: the glob of the path, route or name.
        prefix: where the kernel can apply it: what the path begins with, or all of it if `exact`. None where the
            pattern is no path, or has a wildcard before its end.
        exact: the path has no wildcard.
    """

    text: str
    method: str
    path: str
    prefix: str | None
    exact: bool

    def matches(self, method: str, path: str) -> bool:
        """Whether this selects an operation; method is empty where there is none."""
        return (not self.method or self.method == method) and bool(self.matcher()(path))

    def matcher(self) -> Callable[[str], object]:
        """What says whether a path, route or name is one of this pattern's."""
        return self.path.__eq__ if self.exact else glob_matcher(self.path)


@lru_cache(2048)  # a change of one rule has all of its set asked for again
def glob_matcher(glob: str) -> Callable[[str], object]:
    """What says whether all of a text is what the glob says, as fnmatchcase does. A regular expression would take the
    application twenty times as long to make, in the middle of a decision."""
    if "?" in glob or "[" in glob:
        return re.compile(translate(glob)).match
    head, *middle, tail = glob.split("*")
    if not middle and not tail:
        return lambda path: path.startswith(head)

    def matches(path: str) -> bool:
        at, end = len(head), len(path) - len(tail)
        if at > end or not (path.startswith(head) and path.endswith(tail)):
            return False
        for text in middle:  # each where it comes first: what is left for the others is longest then
            found = path.find(text, at, end)
            if found < 0:
                return False
            at = found + len(text)
        return True

    return matches


def split_operation(text: str) -> tuple[str, str]:
    """Method and path of `GET /pay`; the method is empty where there is none."""
    found = _METHOD.match(text)
    return (found[1], text[found.end() :]) if found else ("", text)


def parse_operation(text: str) -> OperationPattern:
    """Raises ValueError that says what was received."""
    if not text.strip() or len(text) > PATTERN_MAX or not text.isprintable():
        raise ValueError(
            f"an operation is a glob of up to {PATTERN_MAX} printable characters, such as 'GET /pay*', "
            f"'/pkg.Service/*' or a span's name; received {text!r}"
        )
    method, path = split_operation(text)
    wildcard = _GLOB.search(path)
    exact = wildcard is None
    prefix = path if exact else path[:-1] if wildcard and path.find("*") == wildcard.start() == len(path) - 1 else None
    if prefix is not None and not prefix.startswith("/"):
        prefix = None
    return OperationPattern(text, method, path, prefix, exact)
