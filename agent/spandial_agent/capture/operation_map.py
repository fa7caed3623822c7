"""Rules by operation as the kernel looks them up: a longest-prefix map, keyed as bpf/core/operation_key.h says. Pure.

Of the patterns that match an operation the longest need not be the one that wins: an order of precedence says which
does. So the map gets, for each pattern's method and path, the row of the first rule in that order which selects all
operations that begin so; and what holds whatever the method is entered again under each method that a rule names.

A path may come Huffman-coded (HTTP/2). As no code is the beginning of another, the coded paths that begin with a coded
text are those whose text begins with it: entries for them are in the same map, by bits.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH

from spandial.abi import EntryKind
from spandial.patterns import OperationPattern

__all__ = ["KEY_SIZE", "OperationRule", "applies", "entries", "find"]

_METHOD_MAX = 7  # bytes: OPTIONS
_PATH_MAX = 120  # bytes
_HEAD = struct.Struct("=IIB7s")  # prefix in bits, set, kind, method
KEY_SIZE = _HEAD.size + _PATH_MAX
_HEAD_BITS = 8 * (_HEAD.size - 4)
_KINDS = (EntryKind.HTTP, EntryKind.GRPC)  # whose operations the kernel knows
_HUFFMAN = 0x80  # beside the kind: the path is as HTTP/2's Huffman code writes it (RFC 7541, appendix B)
# What ends a path in a key, after which nothing matters: its end, or a query.
_END, _QUERY = b"\0", b"?"
_HUFFMAN_END = 256  # EOS, which no text has: the kernel puts ones behind a path, as that symbol is


class OperationRule(NamedTuple):
    """A rule by operation: the kinds of entry that it is for, the operations, and the row that has its words."""

    kinds: Collection[EntryKind]
    pattern: OperationPattern
    row: int


def applies(pattern: OperationPattern) -> bool:
    """Whether the kernel can tell the operations that a pattern selects: those of one path, or all whose path begins
    with so many bytes or with anything, of one method or of all."""
    path = _path(pattern)
    return path is not None and _fits(path) and len(pattern.method) <= _METHOD_MAX


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
                for form, bits, data in _forms(path):
                    head = _HEAD.pack(_HEAD_BITS + bits, operation_set, kind | form, method.encode())
                    found[head + data.ljust(_PATH_MAX, b"\0")] = of_kind[place].row
    return found


def find(rules: Iterable[OperationRule], kind: EntryKind, method: str, path: str) -> int | None:
    """The row of the first rule that selects an operation, as an entry of the map would say; None where none does."""
    for rule in rules:
        if kind in rule.kinds and rule.pattern.matches(method, path):
            return rule.row
    return None


def _path(pattern: OperationPattern) -> bytes | None:
    """The bytes that the pattern's paths begin with; None where there are no such."""
    if pattern.prefix is None:
        return b"" if pattern.path == "*" else None
    return pattern.prefix.encode() + (_END if pattern.exact else b"")


def _fits(path: bytes) -> bool:
    return all(bits <= 8 * _PATH_MAX for _, bits, _ in _forms(path))


@functools.lru_cache(4096)
def _forms(path: bytes) -> tuple[tuple[int, int, bytes], ...]:
    """A beginning of paths in each of the forms in which they are sent: the form's flag, the number of bits that
    matter, and the bytes."""
    exact = path.endswith(_END)
    text = path.removesuffix(_END)
    forms = [(0, 8 * len(text + end), text + end) for end in ((_END, _QUERY) if exact else (b"",))]
    for symbols in ((*text, _HUFFMAN_END), (*text, *_QUERY)) if exact else (tuple(text),):
        number = bits = 0
        for symbol in symbols:
            number = number << REQUEST_CODES_LENGTH[symbol] | REQUEST_CODES[symbol]
            bits += REQUEST_CODES_LENGTH[symbol]
        forms.append((_HUFFMAN, bits, (number << -bits % 8).to_bytes((bits + 7) // 8, "big")))
    return tuple(forms)


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
