"""More processes than rows, and targets that come and go in any order."""

from __future__ import annotations

import mmap
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from spandial import abi
from spandial.abi import EntryKind, Flag, Mode, encode_word, word_rate
from spandial.labels import Labels
from spandial.patterns import parse_operation
from spandial.sheet import OperationRates
from spandial_agent.processes.counter_page import CounterPage
from spandial_agent.processes.proc import Process
from spandial_agent.table.memfd import MemfdTable
from spandial_agent.table.rates import RateTable
from spandial_agent.targets.limit import Limit
from spandial_agent.targets.target import Target
from spandial_agent.targets.targets import Targets
from spandial_api.rules import Rule, RuleBook
from spandial_api.selectors import Selector, selector_text
from tests.spandial_agent.conftest import DEFAULT
from tests.spandial_agent.fake_capture import FakeCapture

_services = st.sampled_from(["", "checkout", "cart"])
_others = st.sampled_from([(), (("team", "pay"),), (("team", "shop"), ("zone", "a"))])
_labels = st.builds(
    Labels, _services, st.just("v1"), st.sampled_from(["gray", "blue"]), st.sampled_from(["", "acme"]), _others
)
_pids = st.integers(100, 107)
_ROWS = 300  # enough for all processes and all rules by operation of each
_selectors = st.builds(
    Selector,
    st.sampled_from([None, "c*", "cart"]),
    st.none(),
    st.sampled_from([None, "gray"]),
    st.sampled_from([None, "db", "http"]),
    st.sampled_from([None, None, "GET /pay*", "/pay/1", "*"]),
    st.sampled_from([None, "acme", "a*"]),
    st.sampled_from([(), (("team", "pay"),), (("team", "*"),)]),
)
_rules = st.builds(Rule, _selectors, st.sampled_from([0.0, 1.0, 50.0]), st.sampled_from(Mode)) | st.builds(
    Rule, _selectors, st.none(), target=st.just(100.0)
)


@pytest.fixture
def full(table: RateTable, targets: Targets) -> Targets:
    """Targets of a table with one row left."""
    while table.free_rows > 1:
        table.allocate(1, [0] * 4, 0)
    assert targets.discover(Process(1, 1, "last", Labels("checkout", "", "gray"))) is not None
    return targets


def test_a_process_without_a_row_of_its_own_is_a_target_and_watched_on_the_default_row(
    full: Targets, table: RateTable, capture: FakeCapture
) -> None:
    target = full.discover(Process(2, 1, "late", Labels("checkout")))
    assert target is not None
    assert target.row.number == abi.DEFAULT_ROW
    assert capture.watched[2] == target.row
    assert table.refused == 1


def test_rules_for_a_process_without_a_row_do_not_move_the_nodes_default(full: Targets, table: RateTable) -> None:
    target = full.hook(Process(2, 1, "late", Labels()), Labels("cart"), encode_word(3), CounterPage())
    full.apply(RuleBook().put(Rule(Selector(service="cart"), 50)).put(Rule(Selector(), 7)))
    assert table.backend.read(abi.DEFAULT_ROW)[EntryKind.HTTP] == encode_word(7)
    full.remove(target.pid)
    assert table.backend.read(abi.DEFAULT_ROW)[EntryKind.HTTP] == encode_word(7)


def test_a_process_without_a_row_is_under_the_rule_that_it_obeys(full: Targets) -> None:
    target = full.hook(Process(2, 1, "late", Labels()), Labels("cart"), encode_word(3), CounterPage())
    assert not any(target.rules)
    book = RuleBook().put(Rule(Selector(service="cart"), 50)).put(Rule(Selector(), 7))
    full.apply(book)
    assert target.rules == (book.rules[Selector()],) * 4


def test_a_process_that_the_kernel_has_no_room_for_is_a_target_all_the_same(
    full: Targets, capture: FakeCapture
) -> None:
    capture.room = len(capture.watched)
    added: list[Target] = []
    full.on_added = added.append
    target = full.discover(Process(2, 1, "late", Labels("checkout")))
    assert added == [target]
    assert 2 not in capture.watched
    assert full.unwatched == 1
    full.remove(2)
    assert full.get(2) is None


def test_a_process_that_the_kernel_has_no_room_for_may_register_its_hook(full: Targets, capture: FakeCapture) -> None:
    capture.room = len(capture.watched)
    for pid in (2, 3):
        if pid == 3:
            assert full.discover(Process(pid, 1, "late", Labels("checkout"))) is not None
        target = full.hook(Process(pid, 1, "late", Labels()), Labels("cart"), encode_word(3), CounterPage())
        assert target.hooked
        assert target.base is None
    assert full.unwatched == 2


def _mapped(descriptor: int, size: int) -> memoryview:
    return memoryview(mmap.mmap(descriptor, size, prot=mmap.PROT_READ))


class Comings(RuleBasedStateMachine):
    """Processes of few pids begin, are hooked and unhooked, and end, while rules change."""

    def __init__(self) -> None:
        super().__init__()
        self.table = RateTable(MemfdTable())
        while self.table.free_rows > _ROWS:
            self.table.allocate(1, [0] * 4, 0)
        self.words = _mapped(self.table.backend.descriptor, abi.TABLE_SIZE).cast("Q")
        self.sheet = _mapped(self.table.sheet.descriptor, abi.SHEET_SIZE)
        self.capture = FakeCapture()
        self.targets = Targets(self.table, DEFAULT, self.capture)  # type: ignore[arg-type]
        self.book = RuleBook()
        self.watched = ""
        self.steered = 3.0
        self.limits: dict[int, Limit] = {}
        self.targets.rate_of = self.percent
        self.start_times = dict.fromkeys(range(100, 108), 1)

    def percent(self, rule: Rule, labels: Labels, uid: int = 0) -> float:
        return rule.rate if rule.rate is not None else self.steered + (labels.env == "gray")

    def process(self, pid: int, labels: Labels) -> Process:
        known = self.targets.get(pid)
        if known is not None and known.process.start_time != self.start_times[pid]:
            self.limits.pop(pid, None)
        return Process(pid, self.start_times[pid], "python", labels)

    @rule(pid=_pids, labels=_labels, parent=_pids)
    def seen(self, pid: int, labels: Labels, parent: int) -> None:
        self.targets.discover(self.process(pid, labels), self.targets.get(parent))

    @rule(pid=_pids, labels=_labels, rate=st.sampled_from([1.0, 100.0]))
    def hooked(self, pid: int, labels: Labels, rate: float) -> None:
        before = self.targets.get(pid)
        page = CounterPage()
        target = self.targets.hook(self.process(pid, Labels()), labels, encode_word(rate), page)
        assert target.labels == labels
        assert page in target.pages
        if before is not None and before.process.start_time == target.process.start_time:
            assert target is before

    @precondition(lambda self: any(target.hooked for target in self.targets))
    @rule(data=st.data())
    def unhooked(self, data: st.DataObject) -> None:
        target = data.draw(st.sampled_from([target for target in self.targets if target.hooked]))
        row = target.row
        self.targets.unhook(target, target.pages[0])
        assert self.targets.get(target.pid) is target
        assert target.row == row

    @rule(pid=_pids)
    def ended(self, pid: int) -> None:
        self.targets.remove(pid)
        self.limits.pop(pid, None)
        self.start_times[pid] += 1

    @rule(pid=_pids)
    def ended_unnoticed(self, pid: int) -> None:
        self.start_times[pid] += 1

    def obey(self, book: RuleBook) -> None:
        self.book = book
        self.targets.apply(book)

    @rule(rule_=_rules)
    def rule_put(self, rule_: Rule) -> None:
        self.obey(self.book.put(rule_))

    @rule(rules=st.lists(_rules, max_size=4, unique_by=lambda rule: rule.selector), data=st.data())
    def several_rules_changed(self, rules: list[Rule], data: st.DataObject) -> None:
        there = sorted(self.book.rules, key=selector_text)
        removed = data.draw(st.lists(st.sampled_from(there), unique=True)) if there else []
        self.obey(self.book.change(rules, removed))

    @rule(rule_=_rules)
    def rule_put_and_taken_back(self, rule_: Rule) -> None:
        before = self.book
        self.obey(before.put(rule_))
        self.obey(before)

    @rule()
    def rules_loaded_again(self) -> None:
        self.obey(RuleBook.of([replace(rule_) for rule_ in self.book], self.book.revision))

    @precondition(lambda self: self.book.rules)
    @rule(data=st.data())
    def rule_removed(self, data: st.DataObject) -> None:
        self.obey(self.book.remove(data.draw(st.sampled_from(sorted(self.book.rules, key=selector_text)))))

    @rule()
    def many_rules_put(self) -> None:
        self.obey(self.book.change([Rule(Selector(version=f"v{number}*"), number) for number in range(70)]))

    @rule()
    def rules_removed(self) -> None:
        self.obey(RuleBook({}, self.book.revision + 1))

    @rule(limits=st.dictionaries(_pids, st.builds(Limit, st.sampled_from([0, 0.25, 1]), st.sampled_from([1, 100]))))
    def limits_set(self, limits: dict[int, Limit]) -> None:
        self.limits = {pid: limit for pid, limit in limits.items() if self.targets.get(pid) is not None}
        self.targets.set_limits(limits)

    @rule(percent=st.sampled_from([3.0, 7.0]), services=st.sampled_from([None, ["cart", "checkout", "", "none"]]))
    def steered_anew(self, percent: float, services: list[str] | None) -> None:
        self.steered = percent
        self.targets.refresh(services)

    @rule(env=st.sampled_from(["", "gray", "blue"]))
    def watched_env(self, env: str) -> None:
        self.watched = env
        self.targets.emit = lambda labels, hooked: labels.env == env
        self.targets.rewrite()

    @invariant()
    def each_target_has_a_row_of_its_own_with_the_words_of_its_rules(self) -> None:
        for target in self.targets:
            emit = Flag.EMIT if target.labels.env == self.watched else 0
            found = self.table.backend.read(target.row.number)
            for kind in EntryKind:
                rule_ = self.book.resolve(target.labels, kind)
                assert target.rules[kind] == rule_
                limit = self.limits.get(target.pid, Limit())
                if rule_ is None:
                    expected = encode_word(limit.rate(word_rate(target.default) or 0))
                else:
                    expected = rule_.word(limit.rate(self.percent(rule_, target.labels), rule_.floor))
                by_operation = any(own.selector.matches_kind(kind) for own in self.book.operations(target.labels))
                assert found[kind] == expected | emit | (Flag.OPERATIONS if by_operation else 0)
            assert target.group.operations == self.book.operations(target.labels)
            assert found[abi.WORD_FALLBACK] == (target.default if self.book.fallback is None else self.book.fallback)
            assert found[abi.WORD_OWNER] == target.row.epoch << 32 | target.pid
        assert len({target.row.number for target in self.targets}) == len(self.targets)
        rules_rows = sum(len(known.rows) for known in self.targets.operations)
        assert self.table.free_rows == _ROWS - len(self.targets) - rules_rows

    @invariant()
    def each_target_reads_the_rates_of_its_operations(self) -> None:
        for target in self.targets:
            row = self.words[target.row.number * abi.ROW_WORDS : (target.row.number + 1) * abi.ROW_WORDS]
            rates = OperationRates(row, self.words, self.sheet)
            emit = Flag.EMIT if target.labels.env == self.watched else 0
            for operation in ("GET /pay/1", "PUT /pay/1", "GET /pay", "report"):
                asked = parse_operation(operation)
                for kind in EntryKind:
                    wins = next(
                        (
                            rule_
                            for rule_ in self.book.operations(target.labels)
                            if rule_.selector.matches_kind(kind)
                            and (pattern := rule_.selector.pattern)
                            and (
                                pattern.matches(asked.method, asked.path)
                                or (kind is EntryKind.GRPC and pattern.matches("", f"/{operation}"))
                            )
                        ),
                        None,
                    )
                    limit = self.limits.get(target.pid, Limit())
                    word = wins and wins.word(limit.rate(self.percent(wins, target.labels), wins.floor)) | emit
                    assert rates.word(kind, operation, None) == word

    @invariant()
    def the_kernel_has_the_sets_that_rows_name(self) -> None:
        named = {self.table.backend.read(target.row.number)[abi.WORD_OPERATIONS] for target in self.targets}
        named.add(self.table.backend.read(abi.DEFAULT_ROW)[abi.WORD_OPERATIONS])
        assert {word >> 32 for word in named} - {0} <= self.capture.operations.keys()
        assert {known.number for known in self.targets.operations} == self.capture.operations.keys()

    @invariant()
    def every_rule_reaches_those_who_obey_it(self) -> None:
        expected = Counter(
            selector
            for target in self.targets
            for selector in {rule_.selector for rule_ in (*target.rules, *target.group.operations) if rule_}
        )
        assert self.targets.reached() == expected
        for selector in self.book.rules:
            assert self.targets.reached_by(selector) == expected[selector]

    @invariant()
    def nothing_is_kept_of_those_that_ended(self) -> None:
        assert all(target.pid in target.group.members for target in self.targets)
        groups = {id(target.group) for target in self.targets}
        assert len(list(self.targets._groups)) == 1 + len(groups)
        assert self.targets.limits.keys() <= {target.pid for target in self.targets}

    @invariant()
    def it_is_known_which_labels_there_are(self) -> None:
        known = {(target.uid, target.labels) for target in self.targets}
        carts = {(uid, labels) for uid, labels in known if labels.service == "cart"}
        for service, expected in ((None, known), ("cart", carts)):
            said = self.targets.labels(service)
            assert {(uid, labels) for uid, of_user in said.items() for labels in of_user} == expected
        assert all(self.targets.alike(target.labels).labels == target.labels for target in self.targets)
        assert all(self.targets.alike(target.labels, target.uid).uid == target.uid for target in self.targets)

    @invariant()
    def the_kernel_watches_the_targets(self) -> None:
        assert self.capture.watched == {target.pid: target.row for target in self.targets}

    def teardown(self) -> None:
        for target in list(self.targets):
            self.targets.remove(target.pid)
        self.targets.apply(RuleBook())
        assert (self.table.free_rows, len(self.targets.operations)) == (_ROWS, 0)
        assert self.table.sheet.put(bytes(abi.SHEET_SIZE)) == 0
        self.table.close()


TestComings = Comings.TestCase
