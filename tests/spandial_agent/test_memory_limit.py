"""Above its memory limit the agent gives up one thing after the other, in their order, and says what."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from spandial_agent.memory_limit import MemoryLimit, Step, resident_mib


class Given:
    """A limit of 100 MiB, three things to give up, and a clock."""

    def __init__(self) -> None:
        self.given_up: list[str] = []
        self.now = 1000.0
        steps = [Step(name, lambda name=name: self.given_up.append(name)) for name in "abc"]  # type: ignore[misc]
        self.limit = MemoryLimit(100, steps, lambda: self.now)

    def look(self, *resident: float) -> str:
        """At these sizes; what is told afterwards."""
        for each in resident:
            self.now += 2
            self.limit.look(each)
        return self.limit.trouble


def test_at_the_limit_nothing_is_given_up() -> None:
    given = Given()
    assert given.look(1, 99, 100) == ""
    assert given.given_up == []


def test_one_after_the_other_and_from_the_beginning_again() -> None:
    given = Given()
    told = given.look(101, 130, 120, 110)
    assert given.given_up == ["a", "b", "c", "a"]
    assert told == "the agent held 130 MiB of memory, more than SPANDIAL_MEMORY_LIMIT_MIB (100), and gave up a, b, c."


def test_below_the_limit_the_first_is_next_and_what_was_is_told_for_some_minutes() -> None:
    given = Given()
    assert "gave up a, b." in given.look(200, 200, 90)
    assert "gave up a, b." in given.look(200)
    assert given.given_up == ["a", "b", "a"]
    given.now += 301
    assert given.look(90) == ""
    assert given.look(150) == given.limit.trouble != ""
    assert "150 MiB" in given.limit.trouble


@given(st.lists(st.floats(0, 200), max_size=50))
def test_what_is_needed_most_goes_only_after_all_else(sizes: list[float]) -> None:
    given = Given()
    given.look(*sizes)
    assert len(given.given_up) == sum(size > 100 for size in sizes)
    for before, after in zip(["c", *given.given_up], given.given_up):
        assert after == "a" or (before, after) in {("a", "b"), ("b", "c")}


def test_the_memory_of_this_process_is_known() -> None:
    before = resident_mib()
    block = bytearray(64 << 20)
    assert before + 60 < resident_mib() < 4096
    del block
