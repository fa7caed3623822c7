"""Which of a client's calls came to a server with their trace, and which without."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spandial_agent.propagation.examples import Evidence, Example, weigh

MS = 1_000_000
LATER = 10_000
TOLD = 1e-9

_times = st.integers(0, 3000).map(lambda ms: ms * MS)
_methods = st.sampled_from(["GET", "POST", ""])
_paths = st.sampled_from(["/pay", "/api/pay", "/", ""])
_examples = st.lists(st.builds(Example, st.booleans(), _times, _methods, _paths, st.integers(0, 5)), max_size=8)


def call(at_ms: float = 0, path: str = "/pay", trace_id: int = 7) -> Example:
    return Example(True, int(at_ms * MS), "GET", path, trace_id)


def came(at_ms: float, path: str = "/pay", trace_id: int = 0, method: str = "GET") -> Example:
    return Example(False, int(at_ms * MS), method, path, trace_id)


def weighed(
    calls: Iterable[Example], entries: Iterable[Example], end_ms: int = LATER, none_traced: bool = False
) -> Evidence:
    return weigh([*calls], [*entries], 0, end_ms * MS, none_traced=none_traced)


def poisson(rate: float, seed: int) -> list[float]:
    """Moments within ten seconds, so many a second, in milliseconds."""
    source, at, moments = random.Random(seed), 0.0, []
    while (at := at + source.expovariate(rate) * 1000) < LATER:
        moments.append(at)
    return moments


def test_a_call_whose_trace_came_has_arrived() -> None:
    assert weighed([call()], [came(1), came(2, trace_id=7)]) == Evidence(1, None, 1.0)


@pytest.mark.parametrize(
    ("path", "entry"),
    [
        ("/pay", came(1)),
        ("/pay", came(999)),
        ("/pay", came(-0.05)),
        ("/pay", came(1, path="/v2/pay")),
        ("/v2/pay", came(1)),
    ],
    ids=["soon", "late", "before its sending is over", "a prefix put before", "a prefix taken off"],
)
def test_a_call_is_followed_by_a_request_like_it(path: str, entry: Example) -> None:
    evidence = weighed([call(path=path)], [entry])
    assert (evidence.arrived, evidence.lost) == (0, call(path=path))


@pytest.mark.parametrize(
    "entry",
    [came(1, path="/other"), came(1, method="POST"), came(1001), came(-2), came(1, path=""), came(1, trace_id=8)],
    ids=["path", "method", "too late", "earlier", "unknown path", "another trace"],
)
def test_another_request_follows_no_call(entry: Example) -> None:
    assert weighed([call()], [entry]) == Evidence(0, None, 1.0)


def test_what_is_on_its_way_may_arrive_yet() -> None:
    assert weighed([call()], [came(1)], 500).lost is None
    assert weighed([call()], [came(1)], 500, none_traced=True).lost == call()


def test_one_call_proves_nothing() -> None:
    assert weighed([call()], [came(1)]).chance > 1e-5


@pytest.mark.parametrize(("rate", "others"), [(1, 0), (5, 0), (100, 0), (5, 50), (100, 300)])
def test_calls_that_are_followed_soon_are_no_chance(rate: float, others: float) -> None:
    calls = [call(at, trace_id=number + 1) for number, at in enumerate(poisson(rate, 1))]
    behind = random.Random(2)
    entries = [came(one.time_ns / MS + behind.uniform(1, 3)) for one in calls]
    entries += [came(at) for at in poisson(others, 3)] if others else []
    evidence = weighed(calls, entries)
    assert evidence.arrived == 0
    assert evidence.chance < (TOLD if rate > 1 else 1e-6)  # ten calls are few
    assert weighed(calls, [*entries, came(5, trace_id=3)]).arrived == 1


@pytest.mark.parametrize("rate", [1, 10, 100])
@pytest.mark.parametrize("others", [1, 10, 100, 1000])
def test_calls_that_have_nothing_to_do_with_the_server_are(rate: float, others: float) -> None:
    for seed in range(20):
        calls = [call(at, trace_id=number + 1) for number, at in enumerate(poisson(rate, seed))]
        assert weighed(calls, [came(at) for at in poisson(others, seed + 1000)]).chance > 1e-5


@given(_examples, _examples, st.integers(0, 4000), st.booleans())
def test_evidence_is_of_calls_that_did_not_arrive(
    client: list[Example], server: list[Example], end_ms: int, none_traced: bool
) -> None:
    evidence = weighed(client, server, end_ms, none_traced)
    assert 0 <= evidence.arrived <= len(client)
    assert 0 <= evidence.chance <= 1
    assert (evidence.lost is None) <= (evidence.chance == 1)
    if evidence.lost is not None:
        assert evidence.lost in client
        assert evidence.lost.sent
        assert evidence.lost.trace_id
        assert evidence.lost.trace_id not in {one.trace_id for one in server if not one.sent}
