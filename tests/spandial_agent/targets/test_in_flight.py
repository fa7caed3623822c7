"""Requests in flight at a turn: never fewer than there were, and no more where the hook tells when it met the word."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from spandial_agent.processes.counter_page import PageCount
from spandial_agent.targets.in_flight import InFlight

SILENT = PageCount(0, 0, 0)


class Process:
    """A process and its kernel: requests come, wait, and are decided, by whichever word holds at each of the two.

    Attributes:
        differing: requests that the two decided by different words.
    """

    def __init__(self, *, tells: bool = True) -> None:
        self.in_flight = InFlight()
        self.differing = 0
        self._tells = tells
        self._word = self._kernels_word = self._met = self._seen = 0
        self._waiting: deque[int] = deque()  # by which word the kernel decided
        self._hook = self.reported = PageCount(0, int(tells), 0)

    def receive(self) -> None:
        self._seen += 1
        self._waiting.append(self._kernels_word)

    def decide(self, last: bool) -> None:
        if not self._waiting:
            return
        self.differing += (self._waiting.pop() if last else self._waiting.popleft()) != self._word
        decided, met, before = self._hook
        if self._tells and self._met != self._word:
            met, before = met + 1, decided
        self._met = self._word
        self._hook = PageCount(decided + 1, met, before)

    def turn(self, back: bool, within: Sequence[tuple[object, ...]] = (), *, certain: bool = True) -> None:
        """As `FrozenTable` writes: what hooks read first, then what the kernel reads.

        Args:
            within: what happens between the two writes.
        """
        reported = self.reported
        self._word += -1 if back and self._word else 1
        for name, *arguments in within:
            getattr(self, str(name))(*arguments)
        self._kernels_word = self._word
        self.in_flight.turn(self._seen, [reported], certain=certain)

    def report(self) -> None:
        self.reported = self._hook

    def finish(self) -> int:
        while self._waiting:
            self.decide(False)
        self.report()
        return self.in_flight.at_most([self.reported])


REQUESTS = st.one_of(
    st.tuples(st.just("receive")),
    st.tuples(st.just("receive")),
    st.tuples(st.just("decide"), st.booleans()),
    st.tuples(st.just("decide"), st.booleans()),
    st.tuples(st.just("report")),
)
ACTIONS = st.one_of(
    REQUESTS,
    st.tuples(st.just("turn"), st.booleans(), st.lists(REQUESTS, max_size=6)),
    st.tuples(st.just("look")),
)


@given(st.lists(ACTIONS, max_size=60), st.booleans(), st.booleans())
def test_never_fewer_than_there_were(actions: list[tuple[object, ...]], tells: bool, certain: bool) -> None:
    process = Process(tells=tells)
    for name, *arguments in actions:
        if name == "look":
            process.in_flight.at_most([process.reported])
        elif name == "turn":
            process.turn(*arguments, certain=certain)  # type: ignore[arg-type]
        else:
            getattr(process, str(name))(*arguments)
    assert process.finish() >= process.differing


@given(st.integers(0, 50), st.integers(0, 5), st.integers(0, 50))
def test_a_turn_after_which_the_hook_decides_is_known_exactly(before: int, waiting: int, after: int) -> None:
    process = Process()
    for _ in range(before):
        process.receive()
        process.decide(False)
    for _ in range(waiting):
        process.receive()
    process.turn(False)  # nothing was reported since the start
    for _ in range(after):
        process.receive()
    assert process.finish() == process.differing == waiting


def test_what_comes_and_is_decided_between_the_two_writes_of_a_turn_counts() -> None:
    process = Process()
    process.receive()
    process.turn(False, [("receive",), ("decide", False), ("decide", False)])
    assert process.finish() == process.differing == 2


def test_a_turn_back_to_a_word_that_the_hook_has_not_left_counts_what_came_between() -> None:
    process = Process()
    process.turn(False)
    process.receive()
    process.turn(True)
    assert process.finish() == process.differing == 1


def test_many_turns_each_with_a_report_add_up_exactly() -> None:
    process = Process()
    for turn in range(100):
        for _ in range(turn % 3):
            process.receive()
        process.turn(False)
        while process._waiting:
            process.decide(False)
        process.receive()
        process.decide(False)
        process.report()
    assert process.finish() == process.differing == 99


def test_a_quiet_process_turns_without_a_request_in_flight() -> None:
    in_flight = InFlight()
    for _ in range(5):
        in_flight.turn(7, [PageCount(7, 1, 0)], certain=True)
    assert in_flight.at_most([PageCount(7, 1, 0)]) == 0


def test_a_hook_that_has_not_decided_since_leaves_the_turn_open() -> None:
    in_flight = InFlight()
    in_flight.turn(9, [PageCount(6, 1, 0)], certain=True)
    assert in_flight.at_most([PageCount(8, 1, 0)]) == 1
    assert in_flight.at_most([PageCount(9, 1, 0)]) == 0
    in_flight.turn(12, [PageCount(10, 2, 9)], certain=True)
    assert in_flight.at_most([PageCount(13, 3, 10)]) == 2


def test_the_hooks_of_one_process_are_added_up() -> None:
    in_flight = InFlight()
    in_flight.turn(20, [PageCount(9, 1, 0), PageCount(8, 3, 2)], certain=True)
    assert in_flight.at_most([PageCount(12, 2, 10), PageCount(9, 3, 2)]) == 1


def test_where_it_cannot_be_told_all_since_the_last_report_are_in_question() -> None:
    loose = 5
    for certain, then, now in (
        (False, [PageCount(5, 1, 0)], [PageCount(12, 2, 9)]),  # rates of operations
        (True, [PageCount(5, 1, 0)], [PageCount(12, 3, 9)]),  # it met two other words
        (True, [PageCount(5, 0, 0)], [PageCount(12, 0, 0)]),  # it does not tell
        (True, [PageCount(5, 1, 0)], []),  # it went
        (True, [PageCount(5, 4, 0)], [PageCount(12, 1, 0)]),  # its page says nonsense
    ):
        in_flight = InFlight()
        in_flight.turn(10, then, certain=certain)
        assert in_flight.at_most(now) == loose


def test_nonsense_in_a_page_counts_no_more_than_all_requests_since_its_last_report() -> None:
    in_flight = InFlight()
    in_flight.turn(10, [PageCount(4, 1, 0)], certain=True)
    assert in_flight.at_most([PageCount(4, 2, 0)]) == 6
    in_flight.turn(20, [PageCount(4, 2, 0)], certain=True)
    assert in_flight.at_most([PageCount(30, 3, 1 << 64)]) == 6


def test_no_request_is_counted_twice() -> None:
    in_flight = InFlight()
    for seen in (10, 10, 12):
        in_flight.turn(seen, [PageCount(4, 1, 0)], certain=False)
    assert in_flight.at_most([PageCount(12, 4, 9)]) == 8
    for seen in (13, 14):
        in_flight.turn(seen, [PageCount(4, 1, 0)], certain=True)
    assert in_flight.at_most([PageCount(14, 9, 9)]) == 10
