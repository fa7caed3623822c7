"""Rules by operation as targets obey them: sets of rules, each with rows of the rate table and a block of the sheet."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from functools import cached_property
from itertools import count
from typing import NamedTuple

import structlog

from spandial.abi import EntryKind, Flag
from spandial.patterns import OperationPattern
from spandial.sheet import encode_block
from spandial_agent.capture.capture import Capture
from spandial_agent.capture.operation_map import OperationRule
from spandial_agent.errors import OperationsFull
from spandial_agent.table.rates import RateTable

__all__ = ["OperationSet", "OperationSets", "OperationWords"]

_KINDS = tuple(EntryKind)
_log = structlog.get_logger("spandial.operations")


class OperationWords(NamedTuple):
    """A rule by operation: which ones, and the rate words by entry kind; 0 for the kinds that it is not for."""

    pattern: OperationPattern
    words: tuple[int, ...]

    @property
    def kinds(self) -> tuple[EntryKind, ...]:
        return _KINDS if all(self.words) else tuple(kind for kind in _KINDS if self.words[kind])


class OperationSet:
    """Rules that some targets obey before all others, the ones that win first.

    Attributes:
        named: what the row of a target that obeys them has as `WORD_OPERATIONS`; 0 while there is no room for them.
        flags: what a target's own words, by kind, say of these rules.
        tried_after: how many sets the kernel had forgotten when it last had no room for this one.
    """

    def __init__(self, key: Hashable, number: int, rules: tuple[OperationWords, ...]) -> None:
        self.named = 0
        self.key = key
        self.number = number
        self.rules = rules
        self.rows: list[int] = []
        self.offset = 0
        self.in_kernel = False
        self.tried_after = -1
        self.users = 0

    @cached_property
    def flags(self) -> tuple[int, ...]:
        return tuple(Flag.OPERATIONS if any(rule.words[kind] for rule in self.rules) else 0 for kind in EntryKind)


class OperationSets:
    """All sets that somebody uses. A set's number is never used again.

    Attributes:
        refused: how often there was no room for a set.

    Args:
        table: where the rates are, and its sheet the patterns.
        capture: the kernel side, if there is one.
    """

    def __init__(self, table: RateTable, capture: Capture | None = None) -> None:
        self._table = table
        self._capture = capture
        self._sets: dict[Hashable, OperationSet] = {}
        self._numbers = count(1)
        self._forgotten = 0
        self.refused = 0

    def __len__(self) -> int:
        return len(self._sets)

    def __iter__(self) -> Iterator[OperationSet]:
        return iter(self._sets.values())

    @property
    def homeless(self) -> int:
        """Sets for which there is no room: their rules are not obeyed."""
        return sum(not known.named for known in self._sets.values())

    @property
    def missing(self) -> list[str]:
        """One sentence for each thing that is not as the rules want it."""
        sentences = []
        if self.homeless:
            sentences.append(
                f"there is no room for {self.homeless} set(s) of rules by operation (each rule takes a row of the rate "
                "table for each group of processes that it is for): their processes obey their other rules."
            )
        unseen = sum(bool(known.named) and not known.in_kernel for known in self._sets.values())
        if self._capture is not None and unseen:
            sentences.append(
                f"the kernel has no room for {unseen} set(s) of rules by operation: there only hooks obey them."
            )
        return sentences

    def share(self, taken: OperationSet) -> OperationSet:
        """One user more, who has the same rules and rates. Needs a `let_go`, too."""
        taken.users += 1
        return taken

    def take(self, scope: Hashable, rules: Iterable[OperationWords]) -> OperationSet:
        """The set of these rules, with these rates from now on for all who use it. Each `take` needs a `let_go`.

        Args:
            scope: whoever names the same, and has rules of the same patterns and kinds, has the same rates.
            rules: the ones that win first.
        """
        rules = tuple(rules)
        key = scope, tuple((rule.pattern.text, rule.kinds) for rule in rules)
        taken = self._sets.get(key)
        if taken is None:
            taken = self._sets[key] = OperationSet(key, next(self._numbers), rules)
        taken.users += 1
        if taken.named:
            self._write(taken, rules)
        else:
            taken.rules = rules
            self._house(taken)
        if self._capture is not None and taken.named and not taken.in_kernel and taken.tried_after != self._forgotten:
            self._tell_kernel(taken, self._capture)
        return taken

    def let_go(self, taken: OperationSet) -> None:
        """One user less. The rows of who used it must name another set, or none, by now."""
        taken.users -= 1
        if taken.users:
            return
        del self._sets[taken.key]
        if taken.in_kernel and self._capture is not None:
            self._capture.drop_operations(taken.number)
            self._forgotten += 1
        if taken.named:
            self._table.free_operation_rows(taken.rows)
            self._table.sheet.free(taken.offset)

    def _house(self, homeless: OperationSet) -> None:
        """Rows and a block for a set, if there is room: whole before its name is known to anybody."""
        rows = self._table.allocate_operation_rows([rule.words for rule in homeless.rules])
        if not rows:
            self.refused += 1
            return
        block = encode_block((rule.pattern.text, row) for rule, row in zip(homeless.rules, rows))
        offset = self._table.sheet.put(block)
        if offset is None:
            self._table.free_operation_rows(rows)
            self.refused += 1
            return
        homeless.rows, homeless.offset = rows, offset
        homeless.named = homeless.number << 32 | offset

    def _write(self, taken: OperationSet, rules: tuple[OperationWords, ...]) -> None:
        for row, old, new in zip(taken.rows, taken.rules, rules):
            if old.words != new.words:
                self._table.write_operation_row(row, new.words)
        taken.rules = rules

    def _tell_kernel(self, taken: OperationSet, capture: Capture) -> None:
        rules = [OperationRule(rule.kinds, rule.pattern, row) for rule, row in zip(taken.rules, taken.rows)]
        try:
            capture.set_operations(taken.number, rules)
            taken.in_kernel = True
        except (OperationsFull, OSError) as error:
            if isinstance(error, OperationsFull):
                taken.tried_after = self._forgotten
            _log.warning("the kernel does not obey rules by operation", rules=len(rules), error=str(error))
