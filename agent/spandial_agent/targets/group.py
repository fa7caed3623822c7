"""A group: targets that obey alike. Pure."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from operator import is_, or_
from typing import NamedTuple

from spandial.abi import EntryKind, Flag, encode_word, word_rate
from spandial.labels import Labels
from spandial_agent.targets.limit import Limit
from spandial_agent.targets.operation_sets import OperationSet, OperationWords
from spandial_api.rules import Rule, RuleBook
from spandial_api.selectors import PROTOCOLS, Selector

__all__ = ["Group", "OperationLists", "RowWords"]

_KINDS = tuple(EntryKind)


class RowWords(NamedTuple):
    """What the rules say in a row.

    Attributes:
        rates: the rate words by entry kind.
        fallback: the word to obey once the lease has run out.
        operations: the set whose operations have rates of their own, as `WORD_OPERATIONS` has it.
    """

    rates: tuple[int, ...]
    fallback: int
    operations: int = 0


class _OperationList(NamedTuple):
    """Rules by operation, and whether one of them has a target."""

    rules: list[Rule]
    steered: bool


class OperationLists:
    """Lists of rules by operation, one for all groups that have the same: a change makes each once."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], _OperationList] = {}
        self._changes: dict[tuple[int, int, int], tuple[list[Rule], _OperationList]] = {}

    def shared(self, rules: list[Rule]) -> _OperationList:
        key = tuple(map(id, rules))
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = _OperationList(rules, any(rule.rate is None for rule in rules))
        return known

    def changed(self, rules: list[Rule], old: Rule | None, new: Rule | None) -> _OperationList:
        """The list with a rule put in place of another, or without it."""
        key = id(rules), id(old), id(new)
        known = self._changes.get(key)
        if known is None:
            others = [rule for rule in rules if rule is not old]
            if new is not None:
                others.insert(next((at for at, rule in enumerate(others) if rule.order < new.order), len(others)), new)
            known = self._changes[key] = rules, self.shared(others)  # the list, so that its id stays its own
        return known[1]

    def begin(self) -> None:
        """Another book is to be obeyed: forget all lists, those who have them keep them."""
        self._known.clear()
        self._changes.clear()


class Group:
    """Targets with the same labels and the same default, all hooked or none.

    Attributes:
        default: the rate word where no rule applies.
        uid: the user whose processes they are.
        members: their pids.
        rules: the rule in force for each kind of entry; None where the default is.
        operations: the rules by operation, the ones that win first; they win over all others. Never changed in place:
            most often many groups have the same list.
        percents: the percentage that each of `rules` has for these labels; 0 where there is none.
        set: where the rates of `operations` are; None where there are none.
        emit: whether the kernel emits their kept entries.
        words: what `row` says.
    """

    def __init__(self, labels: Labels, default: int, hooked: bool, uid: int = 0) -> None:
        self.labels = labels
        self.uid = uid
        self.default = default
        self.hooked = hooked
        self.members: set[int] = set()
        self.rules: tuple[Rule | None, ...] = ()
        self.operations: list[Rule] = []
        self.percents: tuple[float, ...] = ()
        self._steers_operations = False
        self.set: OperationSet | None = None
        self.emit = False
        self.fallback = default
        self.words = RowWords((), 0)

    @property
    def alike(self) -> Hashable:
        """Groups of the same have the same rules by operation, and rates; a few that have them, too, may differ."""
        return self.emit, id(self.operations), (self.labels, self.uid) if self._steers_operations else None

    @property
    def scope(self) -> Hashable:
        """The same, but for rates that have turned."""
        selectors = tuple(rule.selector for rule in self.operations)
        return self.emit, selectors, (self.labels, self.uid) if self._steers_operations else None

    def operation_words(
        self, percent_of: Callable[[Rule, Labels, int], float], limit: Limit | None = None
    ) -> Iterator[OperationWords]:
        """The rules by operation with their words, whose rates are under this limit."""
        emit = Flag.EMIT if self.emit else 0
        for rule in self.operations:
            if (pattern := rule.selector.pattern) is not None:
                word = rule.word(_rate(rule, percent_of(rule, self.labels, self.uid), limit)) | emit
                for_all = rule.selector.protocol is None
                words = (
                    (word,) * len(_KINDS) if for_all else tuple(word * rule.selector.matches_kind(k) for k in _KINDS)
                )
                yield OperationWords(pattern, words)

    def row(self, limit: Limit | None = None, own: OperationSet | None = None) -> RowWords:
        """All words of a member's row, whose rates are under this limit.

        Args:
            own: where the rates of its operations are, if not where those of the group are.
        """
        emit = Flag.EMIT if self.emit else 0
        rates: list[int] = []
        last, word = None, _limited(self.default, limit) | emit
        for rule, percent in zip(self.rules, self.percents):
            if rule is not last:  # most often one rule has all kinds
                word = _limited(self.default, limit) if rule is None else rule.word(_rate(rule, percent, limit))
                word |= emit
                last = rule
            rates.append(word)
        operations = own or self.set
        if operations is None or not operations.named:
            return RowWords(tuple(rates), self.fallback)
        return RowWords(tuple(map(or_, rates, operations.flags)), self.fallback, operations.named)

    def ask(self, percent_of: Callable[[Rule, Labels, int], float]) -> None:
        """Find the percentages anew, and the words with them."""
        percents: list[float] = []
        last, percent = None, 0.0
        for rule in self.rules:
            if rule is not last:
                percent = 0.0 if rule is None else percent_of(rule, self.labels, self.uid)
                last = rule
            percents.append(percent)
        self.percents = tuple(percents)
        self.words = self.row()

    def obeys(self, rule: Rule) -> bool:
        """Whether this rule is in force for any of their entries."""
        return any(rule is own for own in self.in_force)

    @property
    def in_force(self) -> Iterator[Rule | None]:
        """The rules of all kinds, and those by operation if there is room for them."""
        yield from self.rules
        if self.set is not None and self.set.named:
            yield from self.operations

    def resolve(self, book: RuleBook, lists: OperationLists) -> None:
        """Find all rules anew."""
        self.rules = book.winners(self.labels)
        self._obey(lists.shared(book.operations(self.labels)))

    def follow(
        self, selector: Selector, old: Rule | None, new: Rule | None, book: RuleBook, lists: OperationLists
    ) -> bool:
        """Take one changed rule into account; whether it changes what they obey. Once all that differ between two books
        have been, in any order, the rules are those of the new book."""
        if not selector.matches_labels(self.labels):
            return False
        if selector.operation is not None:
            self._obey(lists.changed(self.operations, old, new))
            return True
        rules = list(self.rules)
        for kind in _KINDS if selector.protocol is None else (PROTOCOLS[selector.protocol],):
            own = rules[kind]
            if new is not None and own is not new and (own is None or new.order > own.order):
                rules[kind] = new
            elif own is not None and own is old:  # removed, or put back to an earlier revision, which may win no more
                rules = list(book.winners(self.labels))
                break
        if all(map(is_, rules, self.rules)):
            return False
        self.rules = tuple(rules)
        return True

    def _obey(self, operations: _OperationList) -> None:
        self.operations, self._steers_operations = operations


def _rate(rule: Rule, percent: float, limit: Limit | None) -> float:
    return percent if limit is None else limit.rate(percent, rule.floor)


def _limited(default: int, limit: Limit | None) -> int:
    return default if limit is None else encode_word(limit.rate(word_rate(default) or 0.0))
