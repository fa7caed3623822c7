"""The node as the control plane sees it, with a kernel side that a test plays."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import pytest

from spandial import abi
from spandial.abi import EntryKind, Mode, Parent, encode_word
from spandial.labels import Labels
from spandial_agent.node import LocalNode
from spandial_agent.processes.proc import Process
from spandial_agent.table.rates import RateTable
from spandial_agent.targets.limit import Limit
from spandial_agent.targets.targets import Targets
from spandial_api.rules import Rule, RuleBook
from spandial_api.selectors import Selector
from tests.agent_process import eventually
from tests.spandial_agent.fake_capture import FakeCapture, counts_of
from tests.spandial_agent.records.making import record
from tests.spandial_agent.running_node import (
    CHECKOUT,
    LOCAL_KEPT,
    REMOTE_DROPPED,
    REMOTE_KEPT,
    ROOT_KEPT,
    Registrar,
    count,
    discovered,
    hooked,
    make_node,
    read,
    running,
)
from tests.spandial_agent.set_clock import SetClock

pytestmark = pytest.mark.anyio


async def test_stats_set_the_kernels_counts_beside_the_hooks(
    node: LocalNode, targets: Targets, capture: FakeCapture
) -> None:
    target, page = hooked(targets)
    capture.counted[target.row.number] = counts_of(seen=10, kept=4, seen_traced=8, kept_traced=3, reverse=1)
    count(page, ROOT_KEPT, 1)
    count(page, REMOTE_DROPPED, 6)
    count(page, REMOTE_KEPT, 2)
    count(page, LOCAL_KEPT, 50)
    [stats] = (await node.stats()).targets
    http = stats.kinds["http"]
    assert http.kernel is not None
    assert http.hook is not None
    assert (http.kernel.seen, http.kernel.kept, http.kernel.reverse) == (10, 4, 1)
    assert (http.hook.root_kept, http.hook.remote_kept, http.hook.local_kept) == (1, 2, 50)
    assert http.difference_seen == 10 - 9
    assert http.difference_kept == 3 - 2


async def test_what_the_kernel_counted_before_the_hook_came_is_not_compared(
    node: LocalNode, targets: Targets, capture: FakeCapture
) -> None:
    target = discovered(targets)
    capture.counted[target.row.number] = counts_of(seen=100, kept_traced=40)
    _, page = hooked(targets)
    capture.counted[target.row.number] = counts_of(seen=103, kept_traced=41)
    count(page, REMOTE_KEPT, 1)
    count(page, REMOTE_DROPPED, 2)
    [stats] = (await node.stats()).targets
    assert (stats.kinds["http"].difference_seen, stats.kinds["http"].difference_kept) == (0, 0)


async def test_requests_between_the_two_when_their_rate_turns_may_differ(
    node: LocalNode, targets: Targets, capture: FakeCapture
) -> None:
    target, page = hooked(targets)
    count(page, REMOTE_KEPT, 5)
    report_turns(page, 1, 0)
    capture.counted[target.row.number] = counts_of(seen=9, seen_traced=8, kept_traced=6)
    targets.apply(book_of(Rule(Selector(env="gray"), 30.0)))
    count(page, REMOTE_KEPT, 6)
    count(page, REMOTE_DROPPED, 2)
    report_turns(page, 2, 6)  # two of the eight were in flight
    [stats] = (await node.stats()).targets
    assert stats.kinds["http"].in_flight_at_turns == 2
    # Of a rule by operation the hook cannot tell when it met it.
    capture.counted[target.row.number] = counts_of(seen=12, seen_traced=11)
    targets.apply(book_of(Rule(Selector(env="gray"), 30.0), Rule(Selector(operation="/pay*"), 1.0)))
    count(page, REMOTE_DROPPED, 5)
    [stats] = (await node.stats()).targets
    assert stats.kinds["http"].in_flight_at_turns == 2 + 3
    # While the lease had run out, each of the two obeyed the fallback from a moment of its own.
    capture.counted[target.row.number] = counts_of(seen=30, seen_traced=21)
    targets.lease_ended()
    [stats] = (await node.stats()).targets
    assert stats.kinds["http"].in_flight_at_turns == 5 + 10


def book_of(*rules: Rule) -> RuleBook:
    return RuleBook({rule.selector: rule for rule in rules})


def report_turns(page: memoryview, met: int, before: int) -> None:
    """What the hook says of the rate words of HTTP."""
    page[abi.PAGE_TURNS + 2 * EntryKind.HTTP] = met
    page[abi.PAGE_TURNS + 2 * EntryKind.HTTP + 1] = before


async def test_where_only_one_of_them_counts_there_is_no_difference(
    node: LocalNode, targets: Targets, capture: FakeCapture
) -> None:
    target = discovered(targets)
    capture.counted[target.row.number] = counts_of(seen=5)
    [stats] = (await node.stats()).targets
    assert stats.kinds["http"].hook is None
    assert stats.kinds["http"].difference_seen is None
    _, page = hooked(targets)
    count(page, ROOT_KEPT, 7, EntryKind.DB)
    [stats] = (await node.stats()).targets
    assert stats.kinds["db"].hook is not None
    assert stats.kinds["db"].difference_seen is None


async def test_the_hooks_of_one_process_are_added_up(node: LocalNode, targets: Targets) -> None:
    for _ in range(2):
        _, page = hooked(targets)
        count(page, ROOT_KEPT, 3)
    [stats] = (await node.stats()).targets
    hook = stats.kinds["http"].hook
    assert hook is not None
    assert hook.root_kept == 6


async def test_kinds_without_any_count_are_left_out(node: LocalNode, targets: Targets) -> None:
    hooked(targets)
    assert [stats.kinds for stats in (await node.stats()).targets] == [{}]


async def test_the_hooks_are_asked_before_their_counts_are_read(node: LocalNode, registrar: Registrar) -> None:
    await node.stats()
    assert registrar.asked == 1


async def test_a_process_without_a_row_shares_no_counts(
    node: LocalNode, table: RateTable, targets: Targets, capture: FakeCapture
) -> None:
    while table.free_rows:
        table.allocate(1, [0] * 4, 0)
    discovered(targets)
    capture.counted[abi.DEFAULT_ROW] = counts_of(seen=1000)
    [stats] = (await node.stats()).targets
    assert stats.kinds == {}
    assert any("the rate table is full: 1 processes" in sentence for sentence in node.health().missing)
    assert node.health().refused_rows == 1


async def test_targets_show_the_words_that_are_in_the_table(node: LocalNode, targets: Targets) -> None:
    discovered(targets)
    node.apply(RuleBook().put(Rule(Selector(env="gray", protocol="db"), 0.1, Mode.BOOST)))
    [state] = node.targets()
    assert (state.pid, state.name, state.service, state.kind) == (4711, "python", "checkout", "discovered")
    free = {"target": None, "limited": ""}
    assert state.rates["db"].model_dump() == {"rate": 0.1, "mode": "boost", "rule": "env=gray protocol=db", **free}
    assert state.rates["http"].model_dump() == {"rate": 100.0, "mode": "follow", "rule": "default", **free}
    assert node.health().revision == 1


async def test_health_is_a_sentence_for_everything_that_is_missing(
    table: RateTable, targets: Targets, registrar: Registrar, discovery: SimpleNamespace
) -> None:
    node = make_node(table, targets, None, registrar, discovery)
    assert (node.health().status, node.health().capture, node.health().table) == ("ok", "off", "memfd")
    discovery.how, discovery.reason = "scan", "the kernel hands out no process events."
    health = node.health()
    assert (health.status, health.discovery) == ("degraded", "scan")
    assert health.missing == ["the kernel hands out no process events."]


async def test_programs_that_cannot_be_attached_again_are_said_and_tried_again(
    node: LocalNode, capture: FakeCapture, registrar: Registrar
) -> None:
    node.switch("somebody says so")
    assert (capture.attached, node.health().capture) == (False, "off")
    capture.lacking = ["the kernel does not take it."]
    for _ in range(2):
        node.switch("")
        assert not capture.attached  # nor a half of it
        said = "capture is off, and 'spandial on' tries again: the kernel does not take it."
        assert (node.health().capture, node.health().missing) == ("off", [said])
    node.switch("somebody says so again")
    assert node.health().missing == ["somebody says so again"]
    capture.lacking = []
    node.switch("")
    assert (capture.attached, node.health().capture, node.health().missing) == (True, "socket", [])
    away = registrar.sent_away
    node.switch("")  # on already: nobody is disturbed
    assert registrar.sent_away == away


async def test_what_the_kernel_refuses_leaves_capture_off_said_and_tried_again(
    node: LocalNode, capture: FakeCapture, registrar: Registrar
) -> None:
    node.switch("off")
    capture.refuses = True
    node.switch("")
    assert (capture.attached, node.health().capture) == (False, "off")
    assert "Argument list too long" in node.health().missing[0]
    assert node.health().status == "degraded"
    capture.refuses = False
    node.switch("")
    assert (capture.attached, node.health().capture, node.health().missing) == (True, "socket", [])


async def test_who_came_while_the_kernel_had_no_room_is_watched_when_there_is_some(
    node: LocalNode, targets: Targets, capture: FakeCapture
) -> None:
    capture.room = 1
    first, second = discovered(targets), discovered(targets, 4712)
    assert (first.watched, second.watched) == (True, False)
    targets.find_room()
    assert (second.watched, targets.unwatched) == (False, 1)
    third = discovered(targets, 4713)
    targets.remove(third.pid)
    targets.remove(first.pid)
    targets.find_room()
    assert second.watched
    assert set(capture.watched) == {second.pid}


async def test_the_lease_is_renewed_again_and_again(node: LocalNode, table: RateTable) -> None:
    deadlines: set[int] = set()

    def renewed_thrice() -> bool:
        deadlines.add(table.backend.read(abi.HEADER_ROW)[abi.HEADER_LEASE])
        return len(deadlines) > 3

    async with running(node):
        await asyncio.to_thread(eventually, renewed_thrice, "the lease is renewed three times")


async def test_a_record_is_an_entry_of_its_process(node: LocalNode, targets: Targets, capture: FakeCapture) -> None:
    discovered(targets)
    now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    kept = record(b"GET /a?b HTTP/1.1", time_ns=now_ns, trace_id=0xABC, span_id=0xD, parent=Parent.REMOTE_KEPT)
    [entry] = await read(node, capture, [kept])
    assert abs(entry.time - time.time()) < 60
    assert (entry.pid, entry.service, entry.version, entry.env) == (4711, *CHECKOUT[:3])
    assert (entry.kind, entry.method, entry.path, entry.kept_by) == ("http", "GET", "/a", "parent")
    assert (entry.trace_id, entry.parent_span_id) == ("abc".zfill(32), "d".zfill(16))


async def test_an_entry_has_the_time_of_a_wall_clock_that_was_set(
    table: RateTable, targets: Targets, capture: FakeCapture, registrar: Registrar, discovery: SimpleNamespace
) -> None:
    clock = SetClock()
    for step in (0, 3600, -7200):
        node = make_node(table, targets, capture, registrar, discovery, clock=clock)
        clock.set(step * 10**9)
        [entry] = await read(node, capture, [record(b"GET /a HTTP/1.1", time_ns=clock.now_ns())])
        assert abs(entry.time - time.time() - clock.step_ns / 10**9) < 60


async def test_an_entry_without_context_or_of_an_ended_process_is_told_too(
    node: LocalNode, capture: FakeCapture
) -> None:
    [entry] = await read(node, capture, [record()])
    assert (entry.service, entry.trace_id, entry.parent_span_id) == ("", "", "")


async def test_the_kernel_emits_while_somebody_watches(node: LocalNode, targets: Targets, table: RateTable) -> None:
    row = discovered(targets).row.number
    other = discovered(targets, 4712, Labels("cart")).row.number
    async with node.watch("checkout", "*"):
        assert table.backend.read(row)[EntryKind.HTTP] == encode_word(100, emit=True)
        assert table.backend.read(other)[EntryKind.HTTP] == encode_word(100)

    def quiet() -> bool:
        return table.backend.read(row)[EntryKind.HTTP] == encode_word(100)

    await asyncio.to_thread(eventually, quiet, "nothing is emitted for nobody")


def test_it_says_which_labels_there_are_and_what_rate_they_have(node: LocalNode, targets: Targets) -> None:
    blue = CHECKOUT._replace(env="blue")
    assert node.labels() == {}
    for pid, labels in ((1, CHECKOUT), (2, CHECKOUT), (3, blue)):
        discovered(targets, pid, labels)
    assert node.labels() == {0: {CHECKOUT, blue}}
    node.apply(RuleBook().change([Rule(Selector(env="gray"), 30.0), Rule(Selector(protocol="db"), 7.0)]))
    assert node.rate(CHECKOUT, EntryKind.HTTP) == 30.0
    assert node.rate(blue, EntryKind.DB) == 7.0
    assert node.rate(CHECKOUT._replace(env="stable"), EntryKind.HTTP) is None
    targets.set_limits({1: Limit(0.5), 2: Limit(0.5)})
    assert node.rate(CHECKOUT, EntryKind.HTTP) == 15.0
    targets.remove(3)
    assert node.labels() == {0: {CHECKOUT}}


def test_it_says_what_rate_the_processes_of_a_user_have(node: LocalNode, targets: Targets) -> None:
    for pid, uid in ((1, 1000), (2, 64321), (3, 64321)):
        targets.discover(Process(pid, 1, "python", CHECKOUT, uid=uid))
    node.apply(RuleBook().change([Rule(Selector(), 30.0)]))
    targets.set_limits({2: Limit(0.1), 3: Limit(0.1)})
    assert node.labels("checkout") == {1000: {CHECKOUT}, 64321: {CHECKOUT}}
    assert [node.rate(CHECKOUT, EntryKind.HTTP, uid) for uid in (1000, 64321, 4321)] == [30.0, 3.0, None]
    assert node.rate(CHECKOUT, EntryKind.HTTP) == 3.0, "of the user who has most"
