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
from spandial.patterns import parse_operation, split_operation

if TYPE_CHECKING:
    from opentelemetry.util.types import Attributes

__all__ = ["OperationRates", "encode_block", "operations_of"]

_NAMED, _VALID, _HTTP = abi.WORD_OPERATIONS, Flag.VALID, EntryKind.HTTP
_LENGTH = struct.Struct("=I")
_OFFSET = 0xFFFFFFFF  # mask
_TRIES = 8  # each fails only where the agent has put another set in place meanwhile
_REMEMBERED = 512  # operations whose rules are known
_LONG = 512  # characters: operations with more are not remembered


class _Rule(NamedTuple):
    """A pattern, as it is asked; `at` is the index of its row's first word in the table."""

    method: str
    matches: Callable[[str], object]
    at: int


_Asked = tuple[object, ...]


class _Set(NamedTuple):
    """A set's rules, and for spans that have come before the rows' words of the rules that they match."""

    named: int
    rules: tuple[_Rule, ...]
    remembered: dict[_Asked, tuple[int, ...]]


def encode_block(rules: Iterable[tuple[str, int]]) -> bytes:
    """The block of these patterns and rows."""
    text = json.dumps(list(rules), ensure_ascii=False, separators=(",", ":")).encode()
    return _LENGTH.pack(len(text)) + text


def _asked(entry: int, name: str, attributes: Attributes) -> _Asked:
    """All that a span's operation depends on: two spans that agree in it have the same."""
    if attributes and entry == _HTTP:
        get = attributes.get
        target = get("http.target")
        if isinstance(target, str) and "?" in target:
            target = target[: target.index("?")]
        method = get("http.request.method") or get("http.method")
        return entry, name, method, get("http.route"), get("url.path"), target
    if attributes and entry == EntryKind.GRPC:
        return entry, name, attributes.get("rpc.service"), attributes.get("rpc.method")
    return entry, name


def _operations(asked: _Asked) -> list[tuple[str, str]]:
    """What an operation is called: methods and paths, of which a rule must match one."""
    entry, name, *named = asked
    found = []
    if named and entry == EntryKind.HTTP:
        method, *paths = named
        found = [(method if isinstance(method, str) else "", path) for path in paths if isinstance(path, str)]
    elif named:
        service, method = named
        if isinstance(method, str):
            found.append(("", f"/{service}/{method}" if isinstance(service, str) and service else _as_path(method)))
    if isinstance(name, str):
        found.append(split_operation(name))
        if entry == EntryKind.GRPC:
            found.append(("", _as_path(name)))
    return found


def operations_of(entry: int, name: str, attributes: Attributes) -> list[tuple[str, str]]:
    """What a span's operation is called: methods and paths, of which a rule must match one.

    By the older and the newer semantic conventions for HTTP requests and RPC; every span also by its name.
    """
    return _operations(_asked(entry, name, attributes))


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
        self._known = _Set(0, (), {})

    def word(self, entry: int, name: str, attributes: Attributes) -> int | None:
        """The rate word of the rule that wins for an operation; None where there is none."""
        asked = None
        for _ in range(_TRIES):
            named = self._row[_NAMED]
            known = self._known
            if known.named != named:
                if (read := self._read(named)) is None:
                    continue
                known = read
            asked = asked or _asked(entry, name, attributes)
            try:
                places = known.remembered[asked]
            except (KeyError, TypeError):
                places = _matching(known, asked)
            found = None
            for at in places:
                word: int = self._table[at + entry]
                if word & _VALID:  # else this rule is for other kinds of entries
                    found = word
                    break
            if self._row[_NAMED] == named:
                return found
        return None

    def frozen(self) -> tuple[Sequence[int], OperationRates | None]:
        """Copies of the row and of its operations' rates, as they are now."""
        for _ in range(_TRIES):
            named = self._row[abi.WORD_OPERATIONS]
            known = self._known if self._known.named == named else self._read(named)
            if known is None:
                continue
            words = {rule.at + kind: self._table[rule.at + kind] for rule in known.rules for kind in EntryKind}
            row = tuple(self._row)
            if row[abi.WORD_OPERATIONS] == named:
                copy = OperationRates(row, words, b"")
                copy._known = known
                return row, copy
        return tuple(self._row), None

    def _read(self, named: int) -> _Set | None:
        """The set that is named so; None where another was put in its place meanwhile."""
        begin = named & _OFFSET
        text = begin + _LENGTH.size
        block = b""
        if named and text <= len(self._sheet):
            end = text + _LENGTH.unpack(bytes(self._sheet[begin:text]))[0]
            block = bytes(self._sheet[text:end]) if end <= len(self._sheet) else b""
        if self._row[abi.WORD_OPERATIONS] != named:
            return None
        known = self._known = _Set(named, _parse(block), {})
        return known


def _matching(known: _Set, asked: _Asked) -> tuple[int, ...]:
    """Where the words of the rules are that match an operation which is not remembered, in order."""
    operations = dict.fromkeys(_operations(asked))  # a span's name often says what its attributes say
    rows = []
    for method, matches, at in known.rules:
        for called, path in operations:
            if (not method or method == called) and matches(path):
                rows.append(at)
                break
    found = tuple(rows)
    length = 0
    for part in asked[1:]:
        if isinstance(part, str):
            length += len(part)
        elif part is not None:
            return found  # who knows how long it is, or whether it can be a key
    if length <= _LONG:
        if len(known.remembered) >= _REMEMBERED:
            known.remembered.clear()
        known.remembered[asked] = found
    return found


def _parse(block: bytes) -> tuple[_Rule, ...]:
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
