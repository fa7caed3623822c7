"""Rules by operation as the kernel looks them up: a longest-prefix map, keyed as bpf/operation_key.h says. Pure.

Of the patterns that match an operation the longest need not be the one that wins: an order of precedence says which
does. So the map gets, for each pattern's method and path, the row of the first rule in that order which selects all
operations that begin so; and what holds whatever the method is entered again under each method that a rule names.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from spandial.abi import EntryKind
from spandial.operations import OperationPattern

__all__ = ["KEY_SIZE", "OperationRule", "applies", "entries", "find"]

_METHOD_MAX = 7  # bytes: OPTIONS
_PATH_MAX = 120  # bytes, with the zero that ends the path of a pattern without a wildcard
_HEAD = struct.Struct("=IIB7s")  # prefix in bits, set, kind, method
KEY_SIZE = _HEAD.size + _PATH_MAX
_KINDS = (EntryKind.HTTP,)  # whose operations the kernel knows


class OperationRule(NamedTuple):
    """A rule by operation: the kinds of entry that it is for, the operations, and the row that has its words."""

    kinds: Collection[EntryKind]
    pattern: OperationPattern
    row: int


def applies(pattern: OperationPattern) -> bool:
    """Whether the kernel can tell the operations that a pattern selects: those of one path, or all whose path begins
    with so many bytes or with anything, of one method or of all."""
    path = _path(pattern)
    return path is not None and len(path) <= _PATH_MAX and len(pattern.method) <= _METHOD_MAX


def entries(operation_set: int, rules: Sequence[OperationRule]) -> dict[bytes, int]:
    """The map's entries for one set of rules: key -> row. Rules to which the kernel cannot be held are left out.

    Args:
        operation_set: the upper half of the word SPANDIAL_WORD_OPERATIONS in the rows that obey these rules.
        rules: the ones that win first.
    """
    found = {}
    for kind in _KINDS:
        of_kind = [rule for rule in rules if kind in rule.kinds and applies(rule.pattern)]
        for method in {"", *(rule.pattern.method for rule in of_kind)}:
            own: dict[bytes, int] = {}
            for place, rule in enumerate(of_kind):
                path = _path(rule.pattern)
                if path is not None and rule.pattern.method in ("", method):
                    own.setdefault(path, place)
            for path, place in _winners(own):
                head = _HEAD.pack(8 * (KEY_SIZE - 4 - _PATH_MAX + len(path)), operation_set, kind, method.encode())
                found[head + path.ljust(_PATH_MAX, b"\0")] = of_kind[place].row
    return found


def find(rules: Iterable[OperationRule], kind: EntryKind, method: str, path: str) -> int | None:
    """The row of the first rule that selects an operation; None where none does."""
    for rule in rules:
        if kind in rule.kinds and rule.pattern.matches(method, path):
            return rule.row
    return None


def _path(pattern: OperationPattern) -> bytes | None:
    """The bytes that the pattern's paths begin with; None where there are no such."""
    if pattern.prefix is None:
        return b"" if pattern.path == "*" else None
    return pattern.prefix.encode() + (b"\0" if pattern.exact else b"")


def _winners(own: dict[bytes, int]) -> Iterable[tuple[bytes, int]]:
    """For each beginning of a path the best place among those of the beginnings that it begins with, and its own; not
    for those that say what a shorter one says."""
    above: list[tuple[bytes, int]] = []
    for path in sorted(own):  # whatever begins with a path comes behind it
        while above and not path.startswith(above[-1][0]):
            above.pop()
        if above and above[-1][1] < own[path]:
            continue
        above.append((path, own[path]))
        yield above[-1]
