"""The sheet, as a hook reads it: which operations have rates of their own, and in which rows of the table they are.

A row's `WORD_OPERATIONS` names a set and where its block begins: its length (u32), then JSON, `[[pattern, row], ...]`,
the patterns that win first. The agent frees a set's block and rows only after no row names it, and no two sets ever
have the same number. So who finds the same word after reading as before has read what belongs together.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from spandial import abi
from spandial.abi import EntryKind, Flag
from spandial.operations import parse_operation, split_operation

if TYPE_CHECKING:
    from opentelemetry.util.types import Attributes

__all__ = ["OperationRates", "encode_block", "operations_of"]

_LENGTH = struct.Struct("=I")
_OFFSET = 0xFFFFFFFF  # mask
_TRIES = 8  # each fails only where the agent has put another set in place meanwhile


class _Rule(NamedTuple):
    """A pattern, as it is asked; `at` is the index of its row's first word in the table."""

    method: str
    matches: Callable[[str], object]
    at: int


_Set = tuple[_Rule, ...]


def encode_block(rules: Iterable[tuple[str, int]]) -> bytes:
    """The block of these patterns and rows."""
    text = json.dumps(list(rules), ensure_ascii=False, separators=(",", ":")).encode()
    return _LENGTH.pack(len(text)) + text


def operations_of(entry: int, name: str, attributes: Attributes) -> list[tuple[str, str]]:
    """What a span's operation is called: methods and paths, of which a rule must match one.

    By the older and the newer semantic conventions; what they name in attributes comes before the span's name.
    """
    found = []
    if attributes and entry == EntryKind.HTTP:
        method = attributes.get("http.request.method") or attributes.get("http.method")
        method = method if isinstance(method, str) else ""
        for key in ("http.route", "url.path", "http.target"):
            path = attributes.get(key)
            if isinstance(path, str):
                found.append((method, path.partition("?")[0]))
    elif attributes and entry == EntryKind.GRPC:
        service, method = attributes.get("rpc.service"), attributes.get("rpc.method")
        if isinstance(method, str):
            found.append(("", f"/{service}/{method}" if isinstance(service, str) and service else _as_path(method)))
    if isinstance(name, str):
        found.append(split_operation(name))
        if entry == EntryKind.GRPC:
            found.append(("", _as_path(name)))
    return found


def _as_path(method: str) -> str:
    """`pkg.Service/Method` as it is on the wire."""
    return method if method.startswith("/") else f"/{method}"


class OperationRates:
    """The rates of the operations that have some of their own. Nothing that is read is believed, and nothing raises.

    Args:
        row: the words of the row that names the set.
        table: all words of the rate table.
        sheet: all bytes of the sheet.
    """

    def __init__(self, row: Sequence[int], table: Sequence[int] | Mapping[int, int], sheet: Sequence[int]) -> None:
        self._row = row
        self._table: Any = table
        self._sheet: Any = sheet
        self._known: tuple[int, _Set] = (0, ())

    def word(self, entry: int, name: str, attributes: Attributes) -> int | None:
        """The rate word of the rule that wins for an operation; None where there is none."""
        operations = None
        for _ in range(_TRIES):
            named = self._row[abi.WORD_OPERATIONS]
            rules = self._rules(named)
            if rules is None:
                continue
            if operations is None:
                operations = operations_of(entry, name, attributes)
            word = self._first(rules, entry, operations)
            if self._row[abi.WORD_OPERATIONS] == named:
                return word
        return None

    def frozen(self) -> tuple[Sequence[int], OperationRates | None]:
        """Copies of the row and of its operations' rates, as they are now."""
        for _ in range(_TRIES):
            named = self._row[abi.WORD_OPERATIONS]
            rules = self._rules(named)
            words = {rule.at + kind: self._table[rule.at + kind] for rule in rules or () for kind in EntryKind}
            row = tuple(self._row)
            if rules is not None and row[abi.WORD_OPERATIONS] == named:
                copy = OperationRates(row, words, b"")
                copy._known = named, rules
                return row, copy
        return tuple(self._row), None

    def _first(self, rules: _Set, entry: int, operations: Sequence[tuple[str, str]]) -> int | None:
        for rule in rules:
            word: int = self._table[rule.at + entry]
            if not word & Flag.VALID:
                continue  # this rule is for other kinds of entries
            for method, path in operations:
                if (not rule.method or rule.method == method) and rule.matches(path):
                    return word
        return None

    def _rules(self, named: int) -> _Set | None:
        """The set that is named so; None where another was put in its place meanwhile."""
        known, rules = self._known
        if known == named:
            return rules
        begin = named & _OFFSET
        text = begin + _LENGTH.size
        block = b""
        if named and text <= len(self._sheet):
            end = text + _LENGTH.unpack(bytes(self._sheet[begin:text]))[0]
            block = bytes(self._sheet[text:end]) if end <= len(self._sheet) else b""
        if self._row[abi.WORD_OPERATIONS] != named:
            return None
        rules = _parse(block)
        self._known = named, rules
        return rules


def _parse(block: bytes) -> _Set:
    """The rules of a block's JSON; none at all where something is odd."""
    try:
        rules = []
        for text, row in json.loads(block):
            pattern = parse_operation(text)
            if not (isinstance(row, int) and abi.DEFAULT_ROW < row < abi.ROWS):
                return ()
            rules.append(_Rule(pattern.method, pattern.matcher(), row * abi.ROW_WORDS))
        return tuple(rules)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return ()
