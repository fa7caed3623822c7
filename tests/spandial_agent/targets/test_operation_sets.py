"""Sets of rules by operation: shared, turned in place, and never in the way of processes."""

from __future__ import annotations

import io
import mmap
from collections.abc import Sequence
from typing import Any

import pytest
from rich.console import Console

from spandial import abi
from spandial.abi import DEFAULT_ROW, HEADER_ROW, EntryKind, Flag, Mode, encode_word
from spandial.labels import Labels
from spandial.patterns import parse_operation
from spandial.sheet import OperationRates
from spandial_agent.capture.operation_map import OperationRule
from spandial_agent.cli.tables import targets_table
from spandial_agent.processes.proc import Process
from spandial_agent.table.rates import RateTable, Row
from spandial_agent.targets.limit import Limit
from spandial_agent.targets.operation_sets import OperationSets, OperationWords
from spandial_agent.targets.targets import Targets
from spandial_api.rules import Rule, RuleBook
from spandial_api.selectors import Selector
from tests.spandial_agent.fake_capture import FakeCapture
from tests.spandial_agent.running_node import CHECKOUT, discovered

HTTP = EntryKind.HTTP


@pytest.fixture
def sets(table: RateTable, capture: FakeCapture) -> OperationSets:
    return OperationSets(table, capture)  # type: ignore[arg-type]


def rules(rate: float, *patterns: str) -> list[OperationWords]:
    return [OperationWords(parse_operation(pattern), (encode_word(rate),) * 4) for pattern in patterns or ("/pay*",)]


class Writes:
    """What is written to the table from now on: rows, and which words."""

    def __init__(self, table: RateTable, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[tuple[int, int]] = []
        write_many = table.backend.write_many  # of a memfd, also for a single row

        def many(rows: Sequence[int], words: Sequence[int], mask: int) -> None:
            self.rows.extend((row, mask) for row in rows)
            write_many(rows, words, mask)

        monkeypatch.setattr(table.backend, "write_many", many)


def rates_of(table: RateTable, row: int) -> OperationRates:
    """What a hook that is handed the descriptors reads."""
    words = memoryview(mmap.mmap(table.backend.descriptor, abi.TABLE_SIZE, prot=mmap.PROT_READ)).cast("Q")
    sheet = memoryview(mmap.mmap(table.sheet.descriptor, abi.SHEET_SIZE, prot=mmap.PROT_READ))
    return OperationRates(words[row * abi.ROW_WORDS : (row + 1) * abi.ROW_WORDS], words, sheet)


def test_who_has_the_same_rules_in_the_same_scope_shares_a_set(sets: OperationSets, table: RateTable) -> None:
    free = table.free_rows
    first, second, other = sets.take("a", rules(1)), sets.take("a", rules(1)), sets.take("b", rules(1))
    assert first is second
    assert other.named != first.named
    assert table.free_rows == free - 2
    sets.let_go(first)
    assert first.named >> 32 in {known.number for known in sets}
    sets.let_go(second)
    sets.let_go(other)
    assert (len(sets), table.free_rows) == (0, free)


def test_a_number_is_never_used_again(sets: OperationSets) -> None:
    seen = set()
    for _ in range(5):
        taken = sets.take("a", rules(1))
        seen.add(taken.named >> 32)
        sets.let_go(taken)
    assert len(seen) == 5
    assert 0 not in seen


def test_a_rate_that_turns_is_one_row_written(
    sets: OperationSets, table: RateTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = sets.take("a", [*rules(1, "/pay"), *rules(1, "/orders")])
    writes = Writes(table, monkeypatch)
    assert sets.take("a", [*rules(50, "/pay"), *rules(1, "/orders")]) is taken
    assert writes.rows == [(taken.rows[0], 0b1111)]
    assert table.backend.read(taken.rows[0])[HTTP] == encode_word(50)


def test_the_rows_of_operations_have_no_owner(sets: OperationSets, table: RateTable) -> None:
    taken = sets.take("a", rules(1, "/pay", "/orders"))
    assert [table.backend.read(row)[4:] for row in taken.rows] == [(0, 0, 0, 0)] * 2


def test_the_kernel_is_told_before_a_row_names_a_set_and_told_to_forget_it(
    sets: OperationSets, capture: FakeCapture
) -> None:
    words = (0, encode_word(1), 0, 0)
    taken = sets.take("a", [OperationWords(parse_operation("GET /pay*"), words)])
    assert capture.operations == {taken.number: [((HTTP,), parse_operation("GET /pay*"), taken.rows[0])]}
    assert taken.flags == (0, Flag.OPERATIONS, 0, 0)
    sets.let_go(taken)
    assert capture.operations == {}


def test_where_the_kernel_has_no_room_hooks_obey_and_it_is_said(sets: OperationSets, capture: FakeCapture) -> None:
    capture.operation_room = 1
    other, taken = sets.take("b", rules(1)), sets.take("a", rules(1))
    assert taken.named
    assert ["the kernel has no room for 1 set" in sentence for sentence in sets.missing] == [True]
    sets.let_go(other)
    assert sets.take("a", rules(1)) is taken
    assert (list(capture.operations), sets.missing) == ([taken.number], [])
    sets.let_go(taken)
    sets.let_go(taken)
    assert capture.operations == {}


def test_a_full_kernel_is_not_asked_again_before_a_set_has_left(
    sets: OperationSets, capture: FakeCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    capture.operation_room = 0
    asked: list[int] = []
    set_operations = capture.set_operations

    def ask(number: int, own: Sequence[OperationRule]) -> list[OperationRule]:
        asked.append(number)
        return set_operations(number, own)

    monkeypatch.setattr(capture, "set_operations", ask)
    for rate in range(10):
        sets.take("a", rules(rate))
    assert len(asked) == 1


@pytest.mark.parametrize("full", ["rows", "rows of operations", "sheet"])
def test_where_there_is_no_room_a_set_is_not_obeyed_and_it_is_said(
    full: str, sets: OperationSets, table: RateTable, capture: FakeCapture
) -> None:
    if full == "sheet":
        assert table.sheet.put(bytes(abi.SHEET_SIZE)) == 0
    elif full == "rows":
        taken = [table.allocate(1, [0] * 4, 0) for _ in range(table.free_rows)]
    else:
        for _ in range(2500):
            table.allocate(1, [0] * 4, 0)
        others = [sets.take(n, rules(1, *(f"/{m}" for m in range(128)))) for n in range(8)]
        assert table.free_rows > 500  # for processes
    free = table.free_rows
    homeless = sets.take("a", rules(1))
    assert homeless.named == 0
    assert (sets.refused, table.free_rows) == (1, free)
    assert ["no room for 1 set" in sentence for sentence in sets.missing] == [True]
    if full == "sheet":
        table.sheet.free(0)
    elif full == "rows":
        table.free(taken[0])
    else:
        sets.let_go(others[0])
    assert sets.take("a", rules(2)) is homeless
    assert homeless.named
    assert sets.missing == []
    assert table.backend.read(homeless.rows[0])[HTTP] == encode_word(2)


def test_while_there_are_few_processes_there_may_be_more_rules(sets: OperationSets, table: RateTable) -> None:
    taken = [sets.take(n, rules(1, *(f"/{m}" for m in range(128)))) for n in range(32)]
    assert [bool(one.named) for one in taken] == [True] * 24 + [False] * 8
    assert table.free_rows == 1024


PAY = Selector(operation="GET /pay*")


def book_of(*changed: Rule, on: RuleBook | None = None) -> RuleBook:
    return (on or RuleBook()).change(changed)


def test_only_the_rows_of_a_rule_are_written_when_its_rate_turns(
    targets: Targets, table: RateTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [discovered(targets, pid, CHECKOUT._replace(version=f"v{pid}")).row.number for pid in range(1, 50)]
    book = book_of(Rule(PAY, 1), Rule(Selector(), 5))
    targets.apply(book)
    writes = Writes(table, monkeypatch)
    targets.apply(book.put(Rule(PAY, 100, Mode.BOOST)))
    written = {row for row, mask in writes.rows if mask & 0b1111}
    assert len(written - {HEADER_ROW, DEFAULT_ROW}) == 1
    assert not written & set(rows)
    for row in rows:
        assert rates_of(table, row).word(HTTP, "GET /pay/1", None) == encode_word(100, Mode.BOOST)
        assert table.backend.read(row)[HTTP] == encode_word(5) | Flag.OPERATIONS


def test_without_rules_by_operation_rows_are_as_if_there_were_none(targets: Targets, table: RateTable) -> None:
    target = discovered(targets)
    book = book_of(Rule(PAY, 1), Rule(Selector(), 5))
    targets.apply(book)
    targets.apply(book.remove(PAY))
    assert table.backend.read(target.row.number)[:6] == (*[encode_word(5)] * 4, 0, 0)
    assert len(targets.operations) == 0


def test_processes_without_a_row_obey_the_rules_by_operation_of_all(targets: Targets, table: RateTable) -> None:
    targets.apply(book_of(Rule(PAY, 1), Rule(Selector(service="checkout", operation="/orders"), 2)))
    rates = rates_of(table, DEFAULT_ROW)
    assert rates.word(HTTP, "GET /pay", None) == encode_word(1)
    assert rates.word(HTTP, "/orders", None) is None


def test_rules_that_name_other_services_are_told_apart(targets: Targets, table: RateTable) -> None:
    one = discovered(targets, 1, Labels("one"))
    two = discovered(targets, 2, Labels("two"))
    targets.apply(
        book_of(Rule(Selector("one", operation="/pay"), 1), Rule(Selector("two", operation="/pay"), 2), Rule(PAY, 3))
    )
    assert [rates_of(table, t.row.number).word(HTTP, "/pay", None) for t in (one, two)] == [
        encode_word(1),
        encode_word(2),
    ]


def test_a_set_finds_the_room_that_another_leaves(targets: Targets, table: RateTable) -> None:
    target = discovered(targets)
    taken: list[Row] = []
    while table.free_rows > 2:
        taken.append(table.allocate(1, [0] * 4, 0))
    rates = rates_of(table, target.row.number)
    book = book_of(Rule(Selector(operation="/a"), 1))  # a set for all, one row
    targets.apply(book)
    targets.apply(book_of(Rule(Selector("checkout", operation="/b"), 2), on=book))
    assert rates.word(HTTP, "/b", None) is None
    assert targets.operations.refused > 0
    assert targets.operations.missing
    assert targets.reached_by(Selector("checkout", operation="/b")) == 0
    assert Selector("checkout", operation="/b") not in targets.reached()
    for row in taken[:4]:
        table.free(row)
    targets.apply(book_of(Rule(Selector("checkout", operation="/b"), 2), on=book))
    assert [rates.word(HTTP, name, None) for name in ("/a", "/b")] == [encode_word(1), encode_word(2)]
    assert targets.reached_by(Selector("checkout", operation="/b")) == 1
    assert targets.operations.missing == []


def test_a_target_that_is_limited_keeps_less_of_its_operations_too(targets: Targets, table: RateTable) -> None:
    one, other = discovered(targets, 1), discovered(targets, 2)
    targets.apply(book_of(Rule(PAY, 100), Rule(Selector(), 10)))
    for limit in (0.5, 0.25):
        targets.set_limits({1: Limit(limit)})
        words = [rates_of(table, target.row.number).word(HTTP, "GET /pay", None) for target in (one, other)]
        assert words == [encode_word(100 * limit), encode_word(100)]
    assert len(targets.operations) == 2  # the limited one's, and everybody else's
    targets.set_limits({})
    assert rates_of(table, one.row.number).word(HTTP, "GET /pay", None) == encode_word(100)
    assert len(targets.operations) == 1


def test_those_whom_an_open_circuit_limits_alike_share_the_rates_of_their_operations(
    targets: Targets, table: RateTable
) -> None:
    targets.apply(book_of(Rule(PAY, 100)))
    for pid in range(1, 9):
        discovered(targets, pid)
    for most in (1.0, 2.0):
        targets.set_limits({pid: Limit(1.0, most) for pid in range(1, 9)})
        assert len(targets.operations) == 2  # theirs, and that of those whom nothing limits
        for target in targets:
            assert rates_of(table, target.row.number).word(HTTP, "GET /pay", None) == encode_word(most)
    targets.apply(book_of(Rule(PAY, 0.5)))
    assert {rates_of(table, t.row.number).word(HTTP, "GET /pay", None) for t in targets} == {encode_word(0.5)}
    targets.set_limits({})
    assert len(targets.operations) == 1


@pytest.mark.parametrize("limit", [None, Limit(0.5)])
def test_a_set_finds_the_room_that_a_process_leaves(limit: Limit | None, targets: Targets, table: RateTable) -> None:
    target = discovered(targets, 1)
    while table.free_rows:
        last = table.allocate(1, [0] * 4, 0)
    if limit is not None:
        targets.set_limits({1: limit})
        table.free(last)
    targets.apply(book_of(Rule(Selector("checkout", operation="/a"), 100)))
    table.free(table.allocate(1, [0] * 4, 0))
    targets.find_room()
    rates = rates_of(table, target.row.number)
    assert rates.word(HTTP, "/a", None) is None
    table.free(last)
    targets.find_room()
    assert rates.word(HTTP, "/a", None) == encode_word(100 if limit is None else 50)
    assert targets.operations.missing == []


def test_a_limit_for_which_there_is_no_room_costs_no_look_at_each_rule(
    targets: Targets, table: RateTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = discovered(targets, 1)
    targets.apply(book_of(Rule(Selector(operation="/a"), 100), Rule(Selector(), 10)))
    while table.free_rows:
        table.allocate(1, [0] * 4, 0)
    monkeypatch.setattr(targets, "rate_of", None)
    targets.set_limits({1: Limit(0.5)})
    assert rates_of(table, target.row.number).word(HTTP, "/a", None) is None
    assert table.backend.read(target.row.number)[HTTP] == encode_word(5)
    assert targets.operations.homeless == 1


def test_what_ends_leaves_nothing_behind(targets: Targets, table: RateTable) -> None:
    free = table.free_rows
    targets.apply(book_of(Rule(Selector("checkout", operation="/pay"), 1)))
    for pid in range(1, 5):
        targets.discover(Process(pid, 1, "python", CHECKOUT._replace(version=f"v{pid}")))
    targets.set_limits({1: Limit(0.5)})
    for pid in range(1, 5):
        targets.remove(pid)
    assert (table.free_rows, len(targets.operations)) == (free, 0)


def test_a_target_shows_the_rates_of_its_operations(node: Any, targets: Targets) -> None:
    discovered(targets)
    targets.apply(
        book_of(Rule(PAY, 1), Rule(Selector("checkout", protocol="grpc", operation="*.Pay/*"), 50, Mode.BOOST))
    )
    assert [state.model_dump() for state in node.targets()[0].operations] == [
        {
            "rate": 50,
            "mode": "boost",
            "rule": "service=checkout protocol=grpc operation=*.Pay/*",
            "target": None,
            "limited": "",
            "operation": "*.Pay/*",
            "kinds": ["grpc"],
            "kernel": False,
        },
        {
            "rate": 1,
            "mode": "follow",
            "rule": 'operation="GET /pay*"',
            "target": None,
            "limited": "",
            "operation": "GET /pay*",
            "kinds": ["internal", "http", "grpc", "db"],
            "kernel": True,
        },
    ]


def test_the_command_line_shows_the_first_few(node: Any, targets: Targets) -> None:
    discovered(targets)
    targets.apply(book_of(*(Rule(Selector(operation=f"/{letter}*"), 1) for letter in "abcde"), Rule(Selector(), 7)))
    console = Console(width=250, file=io.StringIO())
    console.print(targets_table([state.model_dump() for state in node.targets()]))
    assert isinstance(console.file, io.StringIO)
    assert "7, /e*=1, /d*=1, /c*=1, 2 more" in console.file.getvalue()


def test_health_and_statistics_say_what_is_not_obeyed(node: Any, targets: Targets, table: RateTable) -> None:
    discovered(targets)
    while table.free_rows:
        table.allocate(1, [0] * 4, 0)
    targets.apply(book_of(Rule(PAY, 1)))
    health = node.health()
    assert health.status == "degraded"
    assert node.targets()[0].operations == []
    assert any("no room for 1 set(s) of rules by operation" in sentence for sentence in health.missing)
