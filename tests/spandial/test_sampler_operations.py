"""The decider where some operations have rates of their own."""

from __future__ import annotations

import sys
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import INVALID_SPAN, SpanKind, set_span_in_context

from spandial import abi
from spandial.abi import RANDOMNESS_MASK, EntryKind, Flag, Mode, Parent, encode_word
from spandial.decider import Decider
from spandial.decision import decide
from spandial.sheet import encode_block
from tests.spandial.deciders import SPANS, parent_context
from tests.spandial.test_sheet import DROP, FIRST, KEEP, Shared

PORTABLE = {
    "as the SDK is": {},
    "no span key": {"spandial.decider._SPAN_KEY": ""},
    "another trace state": {"spandial.plan._PLAIN_TRACE_STATE": False},
}
words = st.builds(encode_word, st.floats(0, 100), st.sampled_from(Mode), thin=st.booleans())


@pytest.fixture(params=PORTABLE)
def sdk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK as it is, and without the private names that the fast paths rest on."""
    for name, value in PORTABLE[request.param].items():
        monkeypatch.setattr(name, value)


@pytest.fixture
def shared() -> Shared:
    """`/pay*` is kept, whatever holds for the rest."""
    return Shared(("/pay*", KEEP))


def obeying(shared: Shared, base: int = DROP, default: int = DROP) -> Decider:
    decider = Decider(default)
    for entry in EntryKind:
        shared.row[entry] = base | Flag.OPERATIONS
    decider.obey(shared.row, shared.rates)
    return decider


def sample(
    decider: Decider, name: str, entry: EntryKind = EntryKind.HTTP, parent: Parent = Parent.NONE, trace_id: int = 1
) -> Any:
    kind, attributes = SPANS[entry]
    return decider.should_sample(parent_context(parent, trace_id), trace_id, name, kind, attributes)


def is_kept(decider: Decider, name: str, entry: EntryKind = EntryKind.HTTP, parent: Parent = Parent.NONE) -> bool:
    return bool(sample(decider, name, entry, parent).decision.is_sampled())


@pytest.mark.usefixtures("sdk")
def test_each_operation_is_decided_and_counted_as_the_pure_function_does_with_its_word(shared: Shared) -> None:
    decider = obeying(shared)

    @settings(max_examples=500)
    @given(words, words, st.sampled_from(EntryKind), st.integers(1, 2**128 - 1), st.booleans())
    def agree(base: int, own: int, entry: EntryKind, trace_id: int, with_rules: bool) -> None:
        shared.row[entry] = base | (Flag.OPERATIONS if with_rules else 0)
        shared.table[FIRST * abi.ROW_WORDS + entry] = own
        for name, word in (("/pay/1", own if with_rules else base), ("/orders", base)):
            for parent in Parent:
                before = decider.counts()
                kept = sample(decider, name, entry, parent, trace_id).decision.is_sampled()
                assert kept == decide(word, trace_id & RANDOMNESS_MASK, parent)
                local, remote = "LOCAL" in parent.name, "REMOTE" in parent.name
                slot = entry * abi.PAGE_KIND_STRIDE + abi.PAGE_LOCAL * local + abi.PAGE_REMOTE * remote + kept
                grown = [now - then for now, then in zip(decider.counts(), before)]
                assert grown == [index == slot for index in range(abi.PAGE_COUNT_WORDS)]

    agree()


@pytest.mark.usefixtures("sdk")
@pytest.mark.parametrize("entry", EntryKind)
def test_the_next_decision_obeys_whatever_turned(shared: Shared, entry: EntryKind) -> None:
    decider = obeying(shared)
    own = FIRST * abi.ROW_WORDS + entry
    assert [is_kept(decider, name, entry) for name in ("/pay", "/other")] == [True, False]
    shared.table[own] = DROP
    assert not is_kept(decider, "/pay", entry)
    shared.row[entry] = KEEP | Flag.OPERATIONS
    assert [is_kept(decider, name, entry) for name in ("/pay", "/other")] == [False, True]
    shared.row[entry] = KEEP  # no rules for this kind any more
    assert is_kept(decider, "/pay", entry)
    shared.row[entry] = KEEP | Flag.OPERATIONS
    assert [is_kept(decider, name, entry) for name in ("/pay", "/other")] == [False, True]
    shared.put(("/other", DROP), set_=2, offset=8192)
    assert [is_kept(decider, name, entry) for name in ("/pay", "/other")] == [True, False]
    shared.row[abi.WORD_OPERATIONS] = 0
    assert [is_kept(decider, name, entry) for name in ("/pay", "/other")] == [True, True]


def test_without_rules_for_its_kind_no_span_is_asked_for_its_operation(shared: Shared) -> None:
    decider = obeying(shared)
    shared.row[EntryKind.HTTP] = KEEP
    asked: list[int] = []
    shared.rates.word = lambda entry, name, attributes: asked.append(entry)  # type: ignore[method-assign, assignment]
    for entry in EntryKind:
        for parent in Parent:
            is_kept(decider, "/pay", entry, parent)
    assert set(asked) == set(EntryKind) - {EntryKind.HTTP}


def test_a_kept_root_carries_the_threshold_of_its_operation(shared: Shared) -> None:
    decider = obeying(shared, base=encode_word(100))
    shared.put(("/pay*", encode_word(50)), set_=2, offset=8192)
    for entry in EntryKind:
        states = [sample(decider, name, entry, trace_id=RANDOMNESS_MASK).trace_state for name in ("/pay", "/other")]
        assert [state["ot"] for state in states] == ["th:8", "th:0"]


def test_a_child_of_a_kept_local_span_is_thinned_by_a_rule_that_names_a_protocol_only() -> None:
    thinning = [encode_word(0, thin=entry == EntryKind.DB) for entry in EntryKind]
    decider = obeying(Shared(("SELECT", thinning)), base=encode_word(100))
    assert is_kept(decider, "SELECT", EntryKind.INTERNAL, Parent.LOCAL_KEPT)
    assert not is_kept(decider, "SELECT", EntryKind.DB, Parent.LOCAL_KEPT)
    assert is_kept(decider, "INSERT", EntryKind.DB, Parent.LOCAL_KEPT)


def test_what_callers_dropped_is_boosted_by_operation() -> None:
    decider = obeying(Shared(("/pay*", encode_word(100, Mode.BOOST))))
    assert [is_kept(decider, name, parent=Parent.REMOTE_DROPPED) for name in ("/pay", "/other")] == [True, False]


def test_a_broken_span_in_the_context_leaves_the_operation_its_rate(shared: Shared) -> None:
    decider = obeying(shared)
    kind, attributes = SPANS[EntryKind.HTTP]
    context = set_span_in_context(INVALID_SPAN, Context())
    assert decider.should_sample(context, 1, "/pay", kind, attributes).decision.is_sampled()


def test_words_without_rates_of_operations_are_obeyed_as_they_are(shared: Shared) -> None:
    decider = obeying(shared)
    decider.obey([KEEP | Flag.OPERATIONS] * abi.ROW_WORDS)
    assert is_kept(decider, "/other")
    decider.obey(shared.row, shared.rates)
    assert [is_kept(decider, name) for name in ("/pay", "/other")] == [True, False]
    decider.obey([Flag.OPERATIONS] * abi.ROW_WORDS, shared.rates)  # no valid word: the default holds
    assert not is_kept(decider, "/pay")


def test_a_frozen_decider_obeys_what_was_when_it_froze(shared: Shared) -> None:
    decider = obeying(shared)
    decider.freeze()
    shared.table[FIRST * abi.ROW_WORDS + EntryKind.HTTP] = DROP
    shared.row[EntryKind.HTTP] = shared.row[EntryKind.INTERNAL] = KEEP
    shared.row[abi.WORD_OPERATIONS] = 0
    assert [is_kept(decider, name) for name in ("/pay", "/other")] == [True, False]
    decider.freeze()
    assert [is_kept(decider, name) for name in ("/pay", "/other")] == [True, False]


def test_rates_without_number_take_no_more_memory(shared: Shared) -> None:
    decider = obeying(shared)
    for rate in range(1, 1000):
        shared.table[FIRST * abi.ROW_WORDS + EntryKind.HTTP] = encode_word(rate / 10)
        assert decider.should_sample(Context(), RANDOMNESS_MASK, "/pay", *SPANS[EntryKind.HTTP]).decision.is_sampled()
    assert len(decider._of_operations) <= 256


def test_threads_count_every_decision_while_sets_change(shared: Shared) -> None:
    decider = obeying(shared)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    stop = threading.Event()
    wrong: list[str] = []

    def decide_on_both() -> None:
        for _ in range(3000):
            for name, kept in (("/pay", True), ("/other", False)):
                if is_kept(decider, name) is not kept:
                    wrong.append(name)

    def change() -> None:
        set_, old = 1, (FIRST, 64)
        while not stop.wait(0.0005):
            # The same rule in another place; where it was, there is nothing more.
            set_, new = set_ + 1, (40, 8192) if set_ % 2 else (60, 64)
            shared.table[new[0] * abi.ROW_WORDS + EntryKind.HTTP] = KEEP
            shared.write(encode_block([("/pay*", new[0])]), set_, new[1])
            if old[0] != new[0]:
                shared.table[old[0] * abi.ROW_WORDS + EntryKind.HTTP] = 0
            if old[1] != new[1]:
                shared.sheet[old[1] : old[1] + 64] = bytes(64)
            old = new

    threads = [threading.Thread(target=decide_on_both) for _ in range(4)]
    changing = threading.Thread(target=change)
    for thread in (*threads, changing):
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    changing.join()
    sys.setswitchinterval(interval)
    assert wrong == []
    assert sum(decider.counts()) == 4 * 3000 * 2


def test_spans_of_the_sdk_are_kept_by_their_operation() -> None:
    shared = Shared(("GET /pay*", KEEP), ("/shop.Pay/*", KEEP), ("nightly*", KEEP))
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=obeying(shared))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    # As the instrumentations for ASGI, FastAPI and grpcio start them.
    asgi = {"http.scheme": "http", "http.host": "shop:80", "http.target": "/pay/17", "http.method": "GET"}
    grpc = {"rpc.system": "grpc"}
    spans: list[tuple[str, SpanKind, dict[str, Any]]] = [
        ("GET /pay/{id}", SpanKind.SERVER, asgi),
        ("GET", SpanKind.SERVER, asgi),
        ("POST /pay/{id}", SpanKind.SERVER, {**asgi, "http.method": "POST"}),
        ("GET /orders", SpanKind.SERVER, {**asgi, "http.target": "/orders"}),
        ("/shop.Pay/Refund", SpanKind.SERVER, {**grpc, "rpc.service": "shop.Pay", "rpc.method": "Refund"}),
        ("/shop.Cart/Add", SpanKind.SERVER, {**grpc, "rpc.service": "shop.Cart", "rpc.method": "Add"}),
        ("nightly report", SpanKind.INTERNAL, {}),
        ("hourly report", SpanKind.INTERNAL, {}),
    ]
    for name, kind, attributes in spans:
        with (
            tracer.start_as_current_span(name, Context(), kind=kind, attributes=attributes),
            tracer.start_as_current_span(f"child of {name}"),
        ):
            pass
    kept = ["GET /pay/{id}", "GET", "/shop.Pay/Refund", "nightly report"]
    assert [span.name for span in exporter.get_finished_spans()] == [
        each for name in kept for each in (f"child of {name}", name)
    ]
