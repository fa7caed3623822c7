"""What concurrent writers and readers of the rules saw, and whether one order of changes explains all of it.

The revision is the order. Herlihy and Wing, "Linearizability", 1990: an operation takes effect at one moment between
its call and its answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

__all__ = ["Operation", "faults"]


class Operation(NamedTuple):
    """One request and its answer.

    Attributes:
        called, answered: one clock for all, in seconds.
        revision: of the change; of what was read; of what was found where If-Match refused.
        wrote: selector and rate, None for a removal; None where nothing was changed.
        expected: the revision that If-Match named.
        read: rate by selector, where it was a read.
    """

    called: float
    answered: float
    revision: int
    wrote: tuple[str, float | None] | None = None
    expected: int | None = None
    read: Mapping[str, float] | None = None


def faults(operations: Sequence[Operation], first: int = 0) -> list[str]:
    """Everything that no order of these operations explains, in words; the rules are empty at revision `first`."""
    found: list[str] = []
    writes = sorted((op for op in operations if op.wrote is not None), key=lambda op: op.revision)
    revisions = [op.revision for op in writes]
    if revisions != list(range(first + 1, first + 1 + len(writes))):
        found.append(f"the revisions are not {first + 1} to {first + len(writes)}, each once")
    found += [
        f"a change meant for revision {op.expected} made revision {op.revision}"
        for op in writes
        if op.expected is not None and op.expected + 1 != op.revision
    ]
    found += [
        f"a change meant for revision {op.expected} was refused at that revision"
        for op in operations
        if op.wrote is None and op.expected == op.revision
    ]
    found += _against_time(operations)
    state: dict[str, float] = {}
    reads = sorted((op for op in operations if op.read is not None), key=lambda op: op.revision)
    ahead = iter(writes)
    revision, following = first, next(ahead, None)
    for op in reads:
        while following is not None and revision < op.revision:
            assert following.wrote is not None
            selector, rate = following.wrote
            if rate is None:
                state.pop(selector, None)
            else:
                state[selector] = rate
            revision, following = following.revision, next(ahead, None)
        if op.read != state:
            found.append(f"what was read at revision {op.revision} is not what the changes before it made")
    return found


def _against_time(operations: Sequence[Operation]) -> list[str]:
    """What was called after an answer has seen what that answer told of."""
    found = []
    answers = sorted(operations, key=lambda op: op.answered)
    calls = sorted(operations, key=lambda op: op.called)
    seen, index = 0, 0
    for op in calls:
        while index < len(answers) and answers[index].answered < op.called:
            seen = max(seen, answers[index].revision)
            index += 1
        if op.revision < seen or (op.wrote is not None and op.revision == seen):
            found.append(f"revision {op.revision} came after revision {seen} had been answered")
    return found
