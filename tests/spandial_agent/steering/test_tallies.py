"""What each target's entries counted since the last look."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from spandial.abi import EntryKind
from spandial_agent.capture.tally import KindCounts, by_kind, tally_of
from spandial_agent.steering.tallies import Tallies
from spandial_agent.targets.target import Target
from spandial_agent.targets.targets import Targets
from tests.spandial_agent.fake_capture import FakeCapture, counts_of
from tests.spandial_agent.running_node import LOCAL_KEPT, REMOTE_DROPPED, ROOT_KEPT, count, discovered, hooked

_NUMBERS = st.tuples(*[st.integers(0, 2**62)] * 4)
_COUNTS = st.builds(KindCounts, _NUMBERS, _NUMBERS, _NUMBERS, _NUMBERS)


@given(_COUNTS, _COUNTS)
def test_a_sum_of_tallies_is_the_sum_of_each_count(one: KindCounts, other: KindCounts) -> None:
    together = by_kind(tally_of(one) + tally_of(other))
    assert together == tuple(tuple(a + b for a, b in zip(*columns)) for columns in zip(one, other))
    assert by_kind(tally_of(one) + tally_of(other) - tally_of(one)) == other


def look(tallies: Tallies, targets: Targets, *, first: bool = False) -> dict[int, KindCounts]:
    return {target.pid: by_kind(tally) for target, tally in tallies.look(targets, first=first)}


def test_the_first_look_remembers_and_the_next_tells_what_came(targets: Targets, capture: FakeCapture) -> None:
    target = discovered(targets)
    tallies = Tallies(capture)  # type: ignore[arg-type]
    capture.counted[target.row.number] = counts_of(seen=100, kept=10)
    assert look(tallies, targets, first=True) == {}
    assert look(tallies, targets) == {}
    capture.counted[target.row.number] = counts_of(seen=107, kept=12, seen_traced=4, kept_traced=1)
    found = look(tallies, targets)[target.pid]
    assert found == KindCounts((0, 7, 0, 0), (0, 2, 0, 0), (0, 4, 0, 0), (0, 1, 0, 0))


def test_a_target_that_came_between_two_looks_is_told_whole(targets: Targets, capture: FakeCapture) -> None:
    tallies = Tallies(capture)  # type: ignore[arg-type]
    look(tallies, targets, first=True)
    target = discovered(targets)
    capture.counted[target.row.number] = counts_of(seen=5)
    assert look(tallies, targets)[target.pid].seen == (0, 5, 0, 0)


def test_a_row_with_another_tenant_counts_anew(targets: Targets, capture: FakeCapture) -> None:
    tallies = Tallies(capture)  # type: ignore[arg-type]
    first = discovered(targets)
    capture.counted[first.row.number] = counts_of(seen=100)
    look(tallies, targets, first=True)
    targets.remove(first.pid)
    while (target := discovered(targets)).row.number != first.row.number:
        targets.remove(target.pid)
    capture.counted[target.row.number] = counts_of(seen=3)
    assert look(tallies, targets)[target.pid].seen[EntryKind.HTTP] == 3


def test_of_a_hooked_process_the_kernel_tells_what_enters_and_the_hook_the_rest(
    targets: Targets, capture: FakeCapture
) -> None:
    tallies = Tallies(capture)  # type: ignore[arg-type]
    target, page = hooked(targets)
    look(tallies, targets, first=True)
    everything = counts_of(seen=9)._replace(seen=(0, 9, 0, 50))  # the kernel takes every statement for a root
    capture.counted[target.row.number] = everything
    count(page, ROOT_KEPT, 8)
    count(page, ROOT_KEPT, 2, EntryKind.INTERNAL)
    count(page, REMOTE_DROPPED, 3, EntryKind.DB)
    count(page, LOCAL_KEPT, 47, EntryKind.DB)
    found = look(tallies, targets)[target.pid]
    assert found.seen == (2, 9, 0, 3)
    assert found.kept == (2, 0, 0, 0)
    assert found.seen_traced == (0, 0, 0, 3)


def test_without_a_kernel_the_hook_tells_all(targets: Targets) -> None:
    tallies = Tallies(None)
    target, page = hooked(targets)
    target.watched = False
    look(tallies, targets, first=True)
    count(page, ROOT_KEPT, 8)
    count(page, REMOTE_DROPPED, 3)
    assert look(tallies, targets)[target.pid] == KindCounts((0, 11, 0, 0), (0, 8, 0, 0), (0, 3, 0, 0), (0, 0, 0, 0))


def test_who_has_neither_is_not_told(targets: Targets) -> None:
    target: Target = discovered(targets)
    target.watched = False
    assert look(Tallies(None), targets) == {}
