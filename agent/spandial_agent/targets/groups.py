"""All groups of targets, and which of them a change of the rules concerns. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from itertools import chain

from spandial.labels import Labels
from spandial_agent.targets.group import Group, OperationLists
from spandial_api.rules import Rule, RuleBook
from spandial_api.selectors import Selector

__all__ = ["Groups"]

# So many rules changed at once: to ask the book anew costs no more than to follow each of them.
_MANY = 64


class Groups:
    """All groups, the rules resolved once for each.

    Attributes:
        book: what they obey.
        shared: those without a row of their own, who obey what holds for a process without labels. Its members may have
            any.

    Args:
        default: the rate word of those without a row.
        emit: whether the kernel shall emit the kept entries of processes with these labels, hooked or not.
        percent_of: the percentage that a rule has for a user's processes with these labels.
    """

    def __init__(
        self, default: int, emit: Callable[[Labels, bool], bool], percent_of: Callable[[Rule, Labels, int], float]
    ) -> None:
        self.book = RuleBook()
        self._fallback = self.book.fallback
        self._lists = OperationLists()
        self._emit = emit
        self._percent_of = percent_of
        self._by_key: dict[tuple[Labels, int, bool, int], Group] = {}
        self._by_label: dict[str, dict[str, set[Group]]] = {}  # by name and value; those of `shared` are not in it
        self.shared = self._made(Labels(), default, False, 0)

    def __iter__(self) -> Iterator[Group]:
        yield self.shared
        yield from self._by_key.values()

    def join(self, pid: int, labels: Labels, default: int, hooked: bool, uid: int = 0) -> Group:
        """The group of these labels, with one member more."""
        group = self._by_key.get((labels, default, hooked, uid))
        if group is None:
            group = self._by_key[labels, default, hooked, uid] = self._made(labels, default, hooked, uid)
            for name, value in labels.pairs:
                self._by_label.setdefault(name, {}).setdefault(value, set()).add(group)
        group.members.add(pid)
        return group

    def leave(self, pid: int, group: Group) -> None:
        """One member less. A group without any is forgotten."""
        group.members.discard(pid)
        if group.members or group is self.shared:
            return
        del self._by_key[group.labels, group.default, group.hooked, group.uid]
        for name, value in set(group.labels.pairs):
            values = self._by_label[name]
            values[value].discard(group)
            if not values[value]:
                del values[value]
            if not values:
                del self._by_label[name]

    def apply(self, book: RuleBook) -> Collection[Group]:
        """Obey another book; the groups whose words may have changed."""
        changes, fallback = book.changes_from(self.book), self._fallback
        self._lists.begin()
        self.book, self._fallback = book, book.fallback
        concerned = set(self) if fallback != self._fallback or len(changes) > _MANY else set()
        if len(changes) > _MANY:
            for group in self:
                group.resolve(book, self._lists)
        else:
            for selector, (was, now) in changes.items():
                concerned.update(
                    g for g in self._that_may_match(selector) if g.follow(selector, was, now, book, self._lists)
                )
        for group in concerned:
            self._reword(group)
        return concerned

    def labels(self, service: str | None = None) -> Iterator[tuple[int, Labels]]:
        """Users and labels of the groups of one service, or of all; of those without a row of their own nothing is
        known here."""
        groups = self._by_key.values() if service is None else self.of_service(service)
        return ((group.uid, group.labels) for group in groups)

    def of_service(self, service: str) -> Collection[Group]:
        """The groups of a service, other than that of those without a row of their own."""
        return self._by_label.get("service", {}).get(service, ())

    def of(self, labels: Labels) -> Iterator[Group]:
        """The groups with exactly these labels, other than that of those without a row of their own."""
        return (group for group in self.of_service(labels.service) if group.labels == labels)

    def review(self) -> Collection[Group]:
        """Ask anew what is to be emitted; the groups for which the answer has changed."""
        changed = [group for group in self if self._emit(group.labels, group.hooked) != group.emit]
        for group in changed:
            group.emit = not group.emit
            group.words = group.row()
        return changed

    def steer(self, services: Collection[str] | None = None) -> Collection[Group]:
        """Ask anew for the percentages of rules with a target; the groups of these services (None: of all) that have
        such rules."""
        named = self._by_label.get("service", {})
        found = self if services is None else chain.from_iterable(named.get(name, ()) for name in set(services))
        steered = [
            group
            for group in found
            if any(rule is not None and rule.rate is None for rule in (*group.rules, *group.operations))
        ]
        for group in steered:
            self._reword(group)
        return steered

    def reached(self) -> dict[Selector, int]:
        """For each rule's selector, how many members obey it for at least some entries."""
        by_rule: dict[int, int] = {}
        for group in self:
            for rule in {id(rule) for rule in group.in_force if rule is not None}:
                by_rule[rule] = by_rule.get(rule, 0) + len(group.members)
        return {rule.selector: by_rule[id(rule)] for rule in self.book.rules.values() if by_rule.get(id(rule))}

    def reached_by(self, selector: Selector) -> int:
        """The same for one of them; 0 where no rule has this selector."""
        rule = self.book.rules.get(selector)
        if rule is None:
            return 0
        return sum(len(group.members) for group in self._that_may_match(selector) if group.obeys(rule))

    def _that_may_match(self, selector: Selector) -> Iterator[Group]:
        if selector.bucket is None and selector.first_glob is None:
            yield from self
            return
        if selector.matches_labels(self.shared.labels):
            yield self.shared
        if selector.bucket is not None:
            name, value = selector.bucket
            yield from self._by_label.get(name, {}).get(value, ())
        elif selector.first_glob is not None:
            name, matches = selector.first_glob
            for value, groups in self._by_label.get(name, {}).items():
                if matches(value):
                    yield from groups

    def _made(self, labels: Labels, default: int, hooked: bool, uid: int) -> Group:
        group = Group(labels, default, hooked, uid)
        group.resolve(self.book, self._lists)
        group.emit = self._emit(labels, hooked)
        self._reword(group)
        return group

    def _reword(self, group: Group) -> None:
        group.fallback = group.default if self._fallback is None else self._fallback
        group.ask(self._percent_of)
