"""Who is on the node, with which labels, in which row."""

from __future__ import annotations

import os

import pytest

from spandial import abi
from spandial.abi import EntryKind, Flag, Mode, encode_word
from spandial.labels import Labels
from spandial_agent.processes.counter_page import CounterPage
from spandial_agent.processes.proc import Process
from spandial_agent.table.rates import RateTable
from spandial_agent.targets.target import Target
from spandial_agent.targets.targets import Targets
from spandial_api.rules import Rule, RuleBook
from spandial_api.selectors import Selector
from tests.spandial_agent.conftest import DEFAULT
from tests.spandial_agent.fake_capture import FakeCapture, counts_of

CHECKOUT = Labels("checkout", "v1", "gray")
OWN = encode_word(10)


def process(pid: int = 4711, labels: Labels = CHECKOUT, start_time: int = 1) -> Process:
    return Process(pid, start_time, "python", labels)


def discovered(targets: Targets, seen: Process, parent: Target | None = None) -> Target:
    target = targets.discover(seen, parent)
    assert target is not None
    return target


def words(table: RateTable, target: Target) -> tuple[int, ...]:
    return table.backend.read(target.row.number)


def book_of(*rules: Rule) -> RuleBook:
    book = RuleBook()
    for rule in rules:
        book = book.put(rule)
    return book


def test_a_process_that_names_a_service_becomes_a_target(targets: Targets, capture: FakeCapture) -> None:
    target = discovered(targets, process())
    assert targets.get(4711) is target
    assert (list(targets), len(targets), target.hooked) == ([target], 1, False)
    assert capture.watched == {4711: target.row}


def test_a_process_that_names_none_does_not(targets: Targets, capture: FakeCapture) -> None:
    assert targets.discover(process(labels=Labels(env="gray"))) is None
    assert len(targets) == 0
    assert capture.watched == {}


def test_the_agent_itself_is_never_discovered(targets: Targets) -> None:
    assert targets.discover(process(os.getpid())) is None


def test_a_target_that_is_seen_again_stays_as_it_is(targets: Targets, table: RateTable, capture: FakeCapture) -> None:
    target = discovered(targets, process())
    assert targets.discover(process()) is target
    assert table.free_rows == abi.ROWS - 3
    assert capture.calls == [("add", 4711)]


def test_without_a_rule_a_discovered_target_has_the_nodes_default(targets: Targets, table: RateTable) -> None:
    assert words(table, discovered(targets, process()))[: abi.WORD_OWNER] == (DEFAULT,) * 4 + (0, 0, DEFAULT)


def test_without_a_rule_a_hooked_target_has_the_default_it_brought(targets: Targets, table: RateTable) -> None:
    target = targets.hook(process(), CHECKOUT, OWN, CounterPage())
    assert target.hooked
    assert words(table, target)[: abi.WORD_OWNER] == (OWN,) * 4 + (0, 0, OWN)


def test_a_hook_names_the_target_anew_and_keeps_its_row(targets: Targets, table: RateTable) -> None:
    targets.apply(book_of(Rule(Selector(service="cart"), 5)))
    target = discovered(targets, process())
    row = target.row
    assert targets.hook(process(), Labels("cart"), OWN, CounterPage()) is target
    assert (target.row, target.labels, target.hooked) == (row, Labels("cart"), True)
    assert words(table, target)[EntryKind.HTTP] == encode_word(5)


def test_what_the_environment_says_does_not_rename_a_hooked_target(targets: Targets) -> None:
    target = targets.hook(process(), Labels("cart"), OWN, CounterPage())
    discovered(targets, process())
    assert target.labels == Labels("cart")


def test_the_row_stays_while_the_process_lives_whatever_its_hook_does(targets: Targets, table: RateTable) -> None:
    page = CounterPage()
    target = targets.hook(process(), CHECKOUT, OWN, page)
    row = target.row
    targets.unhook(target, page)
    assert (target.row, target.hooked, targets.get(4711)) == (row, False, target)
    targets.apply(book_of(Rule(Selector(env="gray"), 5)))
    assert words(table, target)[EntryKind.HTTP] == encode_word(5)
    assert targets.hook(process(), CHECKOUT, OWN, CounterPage()).row == row


def test_a_process_may_have_several_hooks(targets: Targets) -> None:
    pages = [CounterPage(), CounterPage()]
    for page in pages:
        target = targets.hook(process(), CHECKOUT, OWN, page)
    assert target.pages == pages
    targets.unhook(target, pages[0])
    assert target.pages == [pages[1]]
    targets.unhook(target, pages[0])
    assert target.hooked


def test_the_end_of_a_process_ends_its_hooks(targets: Targets) -> None:
    page = CounterPage()
    target = targets.hook(process(), CHECKOUT, OWN, page)
    targets.remove(4711)
    assert not target.hooked
    with pytest.raises(ValueError, match="released"):
        page.read()
    targets.unhook(target, page)


def test_the_kernel_forgets_a_process_before_its_row_is_free(
    targets: Targets, table: RateTable, capture: FakeCapture
) -> None:
    target = discovered(targets, process())
    owner = target.row.epoch << 32 | 4711
    seen: list[tuple[int, int]] = []
    capture.on_remove = lambda tgid: seen.append((table.free_rows, words(table, target)[abi.WORD_OWNER]))
    free = table.free_rows
    targets.remove(4711)
    assert seen == [(free, owner)]
    assert words(table, target)[abi.WORD_OWNER] == 0
    assert table.free_rows == free + 1
    assert capture.watched == {}


def test_the_end_of_an_unknown_process_changes_nothing(targets: Targets, capture: FakeCapture) -> None:
    targets.remove(4711)
    assert capture.calls == []


def test_a_pid_that_started_at_another_time_is_somebody_else(targets: Targets, capture: FakeCapture) -> None:
    target = discovered(targets, process())
    other = discovered(targets, process(labels=Labels("cart"), start_time=2))
    assert other is not target
    assert other.labels == Labels("cart")
    assert other.row.epoch != target.row.epoch
    assert capture.calls == [("add", 4711), ("remove", 4711), ("add", 4711)]
    assert capture.watched == {4711: other.row}


def test_a_pid_that_started_at_another_time_and_names_no_service_ends_the_target(targets: Targets) -> None:
    discovered(targets, process())
    assert targets.discover(process(labels=Labels(), start_time=2)) is None
    assert len(targets) == 0


def test_a_hook_with_the_pid_of_an_ended_target_gets_a_row_of_its_own(targets: Targets) -> None:
    old_page = CounterPage()
    old = targets.hook(process(), CHECKOUT, OWN, old_page)
    new = targets.hook(process(start_time=2), CHECKOUT, OWN, CounterPage())
    assert new.row != old.row
    targets.unhook(old, old_page)
    assert new.hooked


def test_a_forked_child_inherits_labels_and_default_that_only_its_parent_has(
    targets: Targets, table: RateTable
) -> None:
    parent = targets.hook(process(labels=Labels()), CHECKOUT, OWN, CounterPage())
    child = discovered(targets, process(4712, Labels()), parent)
    assert child.labels == CHECKOUT
    assert words(table, child)[EntryKind.HTTP] == OWN
    assert child.row != parent.row


def test_a_child_that_names_a_service_of_its_own_keeps_it(targets: Targets) -> None:
    parent = targets.hook(process(), CHECKOUT, OWN, CounterPage())
    assert discovered(targets, process(4712, Labels("cart")), parent).labels == Labels("cart")


def test_an_exec_with_other_labels_changes_rates_and_not_the_row(targets: Targets, table: RateTable) -> None:
    targets.apply(book_of(Rule(Selector(service="cart"), 5)))
    target = discovered(targets, process())
    row = target.row
    discovered(targets, process(labels=Labels("cart"))._replace(name="node"))
    assert (target.row, target.labels, target.process.name) == (row, Labels("cart"), "node")
    assert words(table, target)[EntryKind.HTTP] == encode_word(5)


def test_rules_reach_each_kind_of_entry_of_the_targets_they_select(targets: Targets, table: RateTable) -> None:
    gray = discovered(targets, process())
    blue = discovered(targets, process(4712, Labels("checkout", "v1", "blue")))
    targets.apply(
        book_of(
            Rule(Selector(env="gray"), 30, Mode.BOOST),
            Rule(Selector(protocol="db"), 1),
            Rule(Selector(env="gray", protocol="grpc"), 70),
        )
    )
    boost = encode_word(30, Mode.BOOST)
    assert words(table, gray)[:4] == (boost, boost, encode_word(70, thin=True), boost)
    assert words(table, blue)[:4] == (DEFAULT, DEFAULT, DEFAULT, encode_word(1, thin=True))
    assert [rule.rate if rule else None for rule in gray.rules] == [30, 30, 70, 30]


def test_the_nodes_default_is_for_those_without_a_row_and_the_fallback_of_all(
    targets: Targets, table: RateTable
) -> None:
    target = targets.hook(process(), CHECKOUT, OWN, CounterPage())
    targets.apply(book_of(Rule(Selector(), 2, Mode.STRICT), Rule(Selector(env="gray"), 80)))
    assert words(table, target)[abi.WORD_FALLBACK] == encode_word(2)
    assert table.backend.read(abi.DEFAULT_ROW)[:4] == (encode_word(2, Mode.STRICT),) * 4
    assert table.backend.read(abi.DEFAULT_ROW)[abi.WORD_FALLBACK] == encode_word(2)


def test_without_rules_again_everybody_has_his_default_again(targets: Targets, table: RateTable) -> None:
    target = targets.hook(process(), CHECKOUT, OWN, CounterPage())
    before = words(table, target), table.backend.read(abi.DEFAULT_ROW)
    targets.apply(book_of(Rule(Selector(), 2)))
    targets.apply(RuleBook())
    assert (words(table, target), table.backend.read(abi.DEFAULT_ROW)) == before


def test_the_kernel_emits_the_entries_of_those_processes_that_somebody_watches(
    targets: Targets, table: RateTable
) -> None:
    gray = discovered(targets, process())
    targets.emit = lambda labels, hooked: labels.env == "gray"
    targets.rewrite()
    later = discovered(targets, process(4712))
    blue = discovered(targets, process(4713, CHECKOUT._replace(env="blue")))
    for target in (gray, later):
        assert words(table, target)[:4] == (DEFAULT | Flag.EMIT,) * 4
        assert not words(table, target)[abi.WORD_FALLBACK] & Flag.EMIT
    assert words(table, blue)[:4] == (DEFAULT,) * 4

    targets.emit = lambda labels, hooked: False
    targets.rewrite()
    assert words(table, gray)[:4] == words(table, later)[:4] == (DEFAULT,) * 4


def test_rewriting_leaves_the_rates_and_counts_in_the_header(targets: Targets, table: RateTable) -> None:
    target = discovered(targets, process())
    targets.apply(book_of(Rule(Selector(env="gray"), 30)))
    before = words(table, target), table.backend.read(abi.HEADER_ROW)[abi.HEADER_GENERATION]
    targets.rewrite()
    assert words(table, target) == before[0]
    assert table.backend.read(abi.HEADER_ROW)[abi.HEADER_GENERATION] == before[1] + 1


def test_the_kernels_counts_before_the_first_hook_are_its_base(targets: Targets, capture: FakeCapture) -> None:
    target = discovered(targets, process())
    capture.counted[target.row.number] = counts_of(seen=5)
    targets.hook(process(), CHECKOUT, OWN, CounterPage())
    capture.counted[target.row.number] = counts_of(seen=9)
    targets.hook(process(), CHECKOUT, OWN, CounterPage())
    assert target.base == counts_of(seen=5)


def test_comings_and_goings_are_told(targets: Targets) -> None:
    told: list[tuple[str, int]] = []
    targets.on_added = lambda target: told.append(("added", target.pid))
    targets.on_removed = lambda target: told.append(("removed", target.pid))
    discovered(targets, process())
    targets.hook(process(), CHECKOUT, OWN, CounterPage())
    targets.hook(process(4712), CHECKOUT, OWN, CounterPage())
    targets.remove(4711)
    assert told == [("added", 4711), ("added", 4712), ("removed", 4711)]


def test_a_node_without_a_kernel_side_has_targets_all_the_same(table: RateTable) -> None:
    targets = Targets(table, DEFAULT)
    target = targets.hook(process(), CHECKOUT, OWN, CounterPage())
    assert target.base is None
    targets.remove(4711)
    assert table.free_rows == abi.ROWS - 2
