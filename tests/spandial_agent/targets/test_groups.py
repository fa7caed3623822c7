"""Which rows a change of the rules writes, limits, and rates that are steered."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spandial import abi
from spandial.abi import EntryKind, encode_word
from spandial.labels import Labels
from spandial_agent.processes.proc import Process
from spandial_agent.table.memfd import MemfdTable
from spandial_agent.table.rates import RateTable
from spandial_agent.targets.groups import Groups
from spandial_agent.targets.limit import Limit
from spandial_agent.targets.targets import Targets
from spandial_api.rules import DEFAULT_FLOOR, Rule, RuleBook
from spandial_api.selectors import Selector
from tests.spandial_agent.conftest import DEFAULT

CART, CHECKOUT = Selector(service="cart"), Selector(service="checkout")


class CountingTable(MemfdTable):
    """A table that notes which rows are written."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def write_many(self, rows: Sequence[int], words: Sequence[int], mask: int) -> None:
        super().write_many(rows, words, mask)
        self.rows.extend(rows)


class Node:
    def __init__(self) -> None:
        self.backend = CountingTable()
        self.targets = Targets(RateTable(self.backend), DEFAULT)
        for pid, service in enumerate(["cart", "cart", "checkout", "edge"], 100):
            self.targets.discover(Process(pid, 1, "python", Labels(service)))
        self.book = RuleBook()

    def obey(self, book: RuleBook) -> set[int]:
        """The pids whose rows were written."""
        self.book = book
        self.backend.rows.clear()
        self.targets.apply(book)
        return self.written()

    def written(self) -> set[int]:
        return {target.pid for target in self.targets if target.row.number in self.backend.rows}

    def word(self, pid: int, kind: EntryKind = EntryKind.HTTP) -> int:
        target = self.targets.get(pid)
        assert target is not None
        return self.backend.read(target.row.number)[kind]


@pytest.fixture
def node() -> Node:
    return Node()


def test_only_rows_whose_words_change_are_written(node: Node) -> None:
    assert node.obey(node.book.put(Rule(CART, 5))) == {100, 101}
    assert node.obey(node.book.put(Rule(Selector(service="c*"), 7))) == {102}
    assert node.obey(node.book.put(Rule(CART, 5, expires=1e12))) == set()
    assert node.obey(node.book.put(Rule(Selector(), 7))) == {100, 101, 102, 103}
    assert node.obey(node.book.remove(CART)) == {100, 101}
    assert node.obey(node.book.remove(Selector(service="c*"))) == set()


def test_processes_with_the_same_labels_are_one_group(node: Node) -> None:
    cart, other, checkout, _ = node.targets
    assert cart.group is other.group is not checkout.group
    assert cart.group.members == {100, 101}


def test_a_limit_lowers_the_rates_that_rules_or_its_default_give_one_target(node: Node) -> None:
    node.obey(node.book.change([Rule(CART, 40), Rule(Selector(service="cart", protocol="db"), 10)]))
    node.backend.rows.clear()
    node.targets.set_limits({100: Limit(0.25), 103: Limit(most=0.5), 9999: Limit(0.5)})
    assert node.written() == {100, 103}
    assert (node.word(100), node.word(100, EntryKind.DB)) == (encode_word(10), encode_word(2.5, thin=True))
    assert (node.word(101), node.word(103)) == (encode_word(40), encode_word(0.5))
    assert node.targets.limits == {100: Limit(0.25), 103: Limit(most=0.5)}

    node.obey(node.book.put(Rule(CART, 80)))
    assert (node.word(100), node.word(101)) == (encode_word(20), encode_word(80))
    node.targets.set_limits({})
    assert node.word(100) == encode_word(80)


def test_a_limit_leaves_the_fallback(node: Node) -> None:
    node.obey(node.book.put(Rule(Selector(), 40)))
    node.targets.set_limits({100: Limit(0)})
    assert node.word(100) == encode_word(DEFAULT_FLOOR)
    target = node.targets.get(100)
    assert target is not None
    assert node.backend.read(target.row.number)[abi.WORD_FALLBACK] == encode_word(40)


@pytest.mark.parametrize("limit", [-0.1, 1.1, float("nan")])
def test_a_limit_that_is_none_is_refused(limit: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        Limit(limit)
    with pytest.raises(ValueError, match="from 0 to 100"):
        Limit(most=limit * 100)


def test_a_limit_ends_with_its_target(node: Node) -> None:
    node.targets.set_limits({100: Limit(0.5)})
    node.targets.remove(100)
    assert node.targets.limits == {}


def test_rates_that_are_steered_are_asked_for_anew_where_a_rule_has_a_target(node: Node) -> None:
    node.obey(node.book.change([Rule(CART, None, target=100), Rule(CHECKOUT, 5)]))
    asked: list[str] = []

    def percent(rule: Rule, labels: Labels, uid: int) -> float:
        asked.append(labels.service)
        return 12.5

    node.targets.rate_of = percent
    node.targets.refresh(["checkout", "edge", "nobody"])
    assert asked == []
    node.targets.refresh(["cart"])
    assert set(asked) == {"cart"}
    assert (node.word(100), node.word(101), node.word(102)) == (encode_word(12.5), encode_word(12.5), encode_word(5))


def test_a_rule_by_operation_reaches_the_targets_that_it_selects(node: Node) -> None:
    pay = Selector(service="cart", operation="GET /pay*")
    node.obey(node.book.change([Rule(pay, 100), Rule(Selector(), 1)]))
    assert node.targets.reached() == {pay: 2, Selector(): 4}
    assert (node.targets.reached_by(pay), node.targets.reached_by(CART)) == (2, 0)
    cart = node.targets.get(100)
    assert cart is not None
    assert [rule.selector for rule in cart.group.operations] == [pay]


_operation_selectors = st.builds(
    Selector, st.sampled_from([None, "cart", "c*", "*"]), operation=st.sampled_from(["/a", "/b*", "GET /a"])
)


@given(st.lists(st.lists(st.tuples(st.booleans(), _operation_selectors), min_size=1, max_size=3), max_size=8))
def test_every_process_has_the_rules_by_operation_that_the_book_has_for_it(
    steps: list[list[tuple[bool, Selector]]],
) -> None:
    groups = Groups(DEFAULT, lambda *_: False, lambda rule, *_: rule.rate or 0.0)
    book = RuleBook()
    for pid, step in enumerate(steps):
        for put, selector in step:
            if put or selector in book.rules:
                book = book.put(Rule(selector, 1)) if put else book.remove(selector)
        groups.apply(book)
        groups.join(pid, Labels(["cart", "checkout", "edge"][pid % 3], version=str(pid)), DEFAULT, False)
        for group in groups:
            assert list(map(id, group.operations)) == list(map(id, book.operations(group.labels)))


def test_a_change_makes_one_list_for_all_who_have_the_same() -> None:
    """Thousands of groups would else look through hundreds of rules each."""
    groups = Groups(DEFAULT, lambda *_: False, lambda rule, *_: rule.rate or 0.0)
    for pid in range(3):
        groups.join(pid, Labels("cart", version=str(pid)), DEFAULT, False)
    book = RuleBook()
    for operation in ("/a", "/b", "/a"):
        book = book.put(Rule(Selector(operation=operation), 1))
        groups.apply(book)
        assert len({id(group.operations) for group in groups}) == 1
