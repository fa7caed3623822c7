"""The decider: it decides as the pure function does, and counts what it decided."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from opentelemetry import context as context_api
from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, SpanKind, set_span_in_context

from spandial import abi
from spandial.abi import MAX_THRESHOLD, RANDOMNESS_MASK, EntryKind, Flag, Mode, Parent, encode_word
from spandial.decider import entry_kind
from spandial.decision import decide, parse_randomness
from tests.agent_process import PATIENCE_S
from tests.spandial.deciders import Blocking, Decider, parent_context

thresholds = st.one_of(st.sampled_from([0, 1, 1 << 55, RANDOMNESS_MASK]), st.integers(0, RANDOMNESS_MASK))
words = st.builds(lambda threshold, flags: threshold << 8 | flags, thresholds, st.integers(0, 255))
usual_words = st.builds(encode_word, st.floats(0, 100), st.sampled_from(Mode), thin=st.booleans())
trace_ids = st.integers(1, 2**128 - 1)
random_values = st.integers(0, RANDOMNESS_MASK).map(lambda value: f"rv:{value:014x}")
ots = st.lists(st.one_of(random_values, st.sampled_from(["th:8", "th:0", "p:1", "rv:1", "xrv:2"])), max_size=3)

REPOSITORY = Path(__file__).parent.parent.parent
DEFAULT = encode_word(30)
PORTABLE = {
    "as the SDK is": {},
    "no span key": {"spandial.decider._SPAN_KEY": ""},
    "another trace state": {"spandial.plan._PLAIN_TRACE_STATE": False},
}


@pytest.fixture(params=PORTABLE)
def sdk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK as it is, and without the private names that the fast paths rest on."""
    for name, value in PORTABLE[request.param].items():
        monkeypatch.setattr(name, value)


@pytest.fixture
def no_gil(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)


@pytest.fixture
def frequent_switches() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("sdk")
def test_it_decides_and_counts_as_the_pure_function_does() -> None:
    decider = Decider(default=DEFAULT)

    @settings(max_examples=2000)
    @given(st.one_of(words, usual_words), st.sampled_from(EntryKind), trace_ids, ots)
    @example(0, EntryKind.HTTP, 1, [])
    def agree(word: int, entry: EntryKind, trace_id: int, members: list[str]) -> None:
        decider.words[entry] = word
        ot = ";".join(members)
        trace_state = [("ot", ot), ("vendor", "v")] if ot else []
        read = parse_randomness(ot)
        own = trace_id & RANDOMNESS_MASK
        for parent in Parent:
            before = decider.counts()
            kept = decider.decide(trace_id, parent, trace_state, entry).decision.is_sampled()
            randomness = own if read is None or parent is Parent.NONE else read
            assert kept == decide(word if word & Flag.VALID else DEFAULT, randomness, parent)
            slot = entry * abi.PAGE_KIND_STRIDE + _offset(parent) + kept
            assert [now - then for now, then in zip(decider.counts(), before)] == [index == slot for index in range(32)]

    agree()


def _offset(parent: Parent) -> int:
    if parent is Parent.NONE:
        return 0
    return abi.PAGE_LOCAL if parent in (Parent.LOCAL_KEPT, Parent.LOCAL_DROPPED) else abi.PAGE_REMOTE


@pytest.mark.usefixtures("sdk")
def test_each_kind_of_entry_obeys_its_own_word() -> None:
    decider = Decider()
    for chosen in EntryKind:
        for entry in EntryKind:
            decider.words[entry] = encode_word(100 if entry is chosen else 0)
        kept = {entry for entry in EntryKind if decider.decide(1, entry=entry).decision.is_sampled()}
        assert kept == {chosen}


@pytest.mark.usefixtures("sdk")
def test_the_next_decision_obeys_a_word_written_in_place() -> None:
    decider = Decider(encode_word(0))
    for rate in (0, 100, 0, 100):
        decider.words[EntryKind.HTTP] = encode_word(rate)
        assert decider.decide(1).decision.is_sampled() is (rate == 100)
        assert decider.decide(1, Parent.REMOTE_DROPPED).decision.is_sampled() is False
        decider.words[EntryKind.HTTP] = encode_word(rate, Mode.BOOST)
        assert decider.decide(1, Parent.REMOTE_DROPPED).decision.is_sampled() is (rate == 100)


def test_it_tells_how_often_a_word_was_another_one_and_what_came_before() -> None:
    decider = Decider(encode_word(30))
    assert decider.turns() == [0] * abi.PAGE_TURN_WORDS

    def told(entry: EntryKind) -> list[int]:
        return decider.turns()[2 * entry : 2 * entry + 2]

    for parent in (Parent.NONE, Parent.REMOTE_KEPT, Parent.REMOTE_DROPPED, Parent.LOCAL_KEPT):
        decider.decide(1, parent)
    assert told(EntryKind.HTTP) == [1, 0]
    decider.words[EntryKind.HTTP] = encode_word(40)
    assert told(EntryKind.HTTP) == [1, 0]  # nothing has been decided by it
    decider.decide(1, Parent.REMOTE_KEPT)
    decider.decide(1, Parent.REMOTE_KEPT)
    assert told(EntryKind.HTTP) == [2, 2]
    decider.words[EntryKind.HTTP] = encode_word(30) | Flag.OPERATIONS
    for _ in range(5):  # each span is looked up: that is no turn
        decider.decide(1)
    assert told(EntryKind.HTTP) == [3, 4]
    assert told(EntryKind.GRPC) == [0, 0]


def test_words_that_are_not_valid_stand_for_the_default() -> None:
    decider = Decider(word=0, default=encode_word(50))
    assert not decider.decide(MAX_THRESHOLD // 2 - 1).decision.is_sampled()
    assert decider.decide(MAX_THRESHOLD // 2).decision.is_sampled()


def test_it_obeys_the_words_it_was_given_last() -> None:
    decider = Decider(encode_word(0))
    words = [encode_word(100)] * abi.ROW_WORDS
    decider.obey(words)
    assert decider.decide(1).decision.is_sampled()


@pytest.mark.parametrize(
    ("kind", "attributes", "entry"),
    [
        (SpanKind.SERVER, {"http.method": "GET"}, EntryKind.HTTP),
        (SpanKind.SERVER, {"http.request.method": "GET"}, EntryKind.HTTP),
        (SpanKind.SERVER, {"rpc.system": "grpc"}, EntryKind.GRPC),
        (SpanKind.SERVER, {"rpc.system.name": "grpc"}, EntryKind.GRPC),
        (SpanKind.CLIENT, {"db.system": "mysql"}, EntryKind.DB),
        (SpanKind.CLIENT, {"db.system.name": "mysql"}, EntryKind.DB),
        (SpanKind.CLIENT, {"http.request.method": "GET"}, EntryKind.INTERNAL),
        (SpanKind.CLIENT, {"rpc.system": "grpc"}, EntryKind.INTERNAL),
        (SpanKind.SERVER, {"rpc.system": "aws-api"}, EntryKind.INTERNAL),
        (SpanKind.SERVER, {"db.system": "mysql"}, EntryKind.INTERNAL),
        (SpanKind.SERVER, {"anything": "else"}, EntryKind.INTERNAL),
        (SpanKind.INTERNAL, {"http.method": "GET", "db.system": "mysql"}, EntryKind.INTERNAL),
        (SpanKind.CONSUMER, {"messaging.system": "kafka"}, EntryKind.INTERNAL),
        (SpanKind.SERVER, {}, EntryKind.INTERNAL),
        (SpanKind.SERVER, None, EntryKind.INTERNAL),
        (None, {"http.method": "GET"}, EntryKind.INTERNAL),
    ],
)
def test_the_kind_of_entry_follows_from_span_kind_and_conventions(
    kind: SpanKind | None, attributes: dict[str, str] | None, entry: EntryKind
) -> None:
    assert entry_kind(kind, attributes) is entry
    for parent in Parent:
        decider = Decider(encode_word(0))
        decider.sample(kind, attributes, parent=parent)
        assert list(decider.counted()) == [entry * 8 + _offset(parent) + (parent in (1, 3))]


@pytest.mark.usefixtures("sdk")
@pytest.mark.parametrize("parent", Parent)
def test_a_kept_span_has_its_attributes_and_a_dropped_one_none(parent: Parent) -> None:
    attributes = {"http.request.method": "GET", "url.path": "/"}
    kept = Decider(encode_word(100, Mode.BOOST)).sample(SpanKind.SERVER, attributes, parent=parent)
    assert kept.decision.is_sampled() is (parent is not Parent.LOCAL_DROPPED)
    assert dict(kept.attributes) == (attributes if kept.decision.is_sampled() else {})
    dropped = Decider(encode_word(0, Mode.STRICT, thin=True)).sample(SpanKind.SERVER, attributes, parent=parent)
    assert dropped.decision.is_sampled() is False
    assert dict(dropped.attributes) == {}
    assert "RECORD_AND_SAMPLE" in repr(kept) or parent is Parent.LOCAL_DROPPED
    assert "DROP" in repr(dropped)


@pytest.mark.usefixtures("sdk")
def test_without_a_context_argument_the_current_context_holds() -> None:
    decider = Decider(encode_word(100))
    token = context_api.attach(parent_context(Parent.REMOTE_DROPPED, 1))
    try:
        assert not decider.should_sample(None, 1, "span").decision.is_sampled()
        assert decider.should_sample(Context(), 1, "span").decision.is_sampled()
    finally:
        context_api.detach(token)
    assert decider.should_sample(None, 1, "span").decision.is_sampled()


@pytest.mark.usefixtures("sdk")
@pytest.mark.parametrize("span", [INVALID_SPAN, None, "no span", object()])
def test_a_current_span_that_is_none_makes_a_root(span: Any) -> None:
    decider = Decider(encode_word(100))
    assert decider.should_sample(set_span_in_context(span, Context()), 1, "span").decision.is_sampled()
    assert decider.counted() == {1: 1}


def test_without_attributes_and_kind_it_decides_too() -> None:
    decider = Decider(encode_word(100))
    assert dict(decider.should_sample(None, 1, "span").attributes) == {}
    assert dict(decider.should_sample(parent_context(Parent.REMOTE_KEPT, 1), 1, "span").attributes) == {}


@pytest.mark.usefixtures("frequent_switches")
def test_counts_are_exact_under_eight_threads() -> None:
    _count_exactly(Decider())


@pytest.mark.usefixtures("frequent_switches", "no_gil")
def test_counts_are_exact_under_eight_threads_without_the_gil() -> None:
    _count_exactly(Decider())


def _count_exactly(decider: Decider) -> None:
    rounds = 300
    decider.words[:] = [encode_word(50)] * abi.ROW_WORDS
    kept: list[Counter[tuple[EntryKind, Parent, bool]]] = []
    start = threading.Barrier(8)

    def work(seed: int) -> None:
        mine: Counter[tuple[EntryKind, Parent, bool]] = Counter()
        kept.append(mine)
        start.wait()
        for turn in range(rounds):
            trace_id = (turn * 8 + seed + 1) << 43
            for entry in EntryKind:
                for parent in Parent:
                    mine[entry, parent, decider.decide(trace_id, parent, (), entry).decision.is_sampled()] += 1

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected: Counter[int] = Counter()
    for (entry, parent, is_kept), count in sum(kept, Counter()).items():
        expected[entry * 8 + _offset(parent) + is_kept] += count
    assert decider.counted() == dict(expected)
    assert sum(decider.counts()) == 8 * rounds * len(EntryKind) * len(Parent)


@pytest.mark.usefixtures("no_gil", "sdk")
def test_without_the_gil_decisions_wait_for_each_other() -> None:
    decider, attributes, second = Decider(), Blocking(), threading.Event()
    first = threading.Thread(target=decider.sample, args=(SpanKind.SERVER, attributes))
    first.start()
    assert attributes.entered.wait(30)

    def decide_second() -> None:
        decider.decide(1)
        second.set()

    waiting = threading.Thread(target=decide_second)
    waiting.start()
    assert not second.wait(0.1)
    attributes.go_on.set()
    assert second.wait(30)
    first.join()
    waiting.join()
    assert sum(decider.counts()) == 2


def test_without_the_gil_a_child_forked_amid_a_decision_decides() -> None:
    script = """
import os, sys, threading
sys._is_gil_enabled = lambda: False
from opentelemetry.trace import SpanKind
from tests.spandial.deciders import Blocking, Decider

decider, attributes = Decider(), Blocking()
threading.Thread(target=decider.sample, args=(SpanKind.SERVER, attributes), daemon=True).start()
attributes.entered.wait()
child = os.fork()
if child == 0:
    import faulthandler
    faulthandler.dump_traceback_later(10, exit=True)
    decider.decide(1)
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
os._exit(0)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=REPOSITORY, timeout=PATIENCE_S
    )
    assert (done.stdout, done.stderr) == ("7\n", "")
