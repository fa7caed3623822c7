"""What the sampler passes on in the tracestate: the threshold that kept a span, and everybody else's members."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.trace.sampling import SamplingResult
from opentelemetry.trace import TraceState

from spandial.abi import RANDOMNESS_MASK, EntryKind, Flag, Mode, Parent, encode_word
from spandial.decision import parse_threshold
from tests.spandial.deciders import Decider

KEPT = (Parent.REMOTE_KEPT, Parent.LOCAL_KEPT)
HIGH = RANDOMNESS_MASK  # kept at every rate but 0
LOW = 1
WAYS = list(product(Mode, (False, True)))


@pytest.fixture(autouse=True, params=["plain trace state", "another trace state"])
def trace_state_of_the_sdk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spandial.plan._PLAIN_TRACE_STATE", request.param == "plain trace state")


def members(result: SamplingResult) -> list[tuple[str, str]]:
    return list((result.trace_state or TraceState()).items())


def passed_on(
    word: int, parent: Parent, ot: str = "", *others: tuple[str, str], randomness: int = HIGH
) -> list[tuple[str, str]]:
    """The tracestate of a kept span; `ot` comes last of what its parent had."""
    result = Decider(word).decide(randomness, parent, [*others, ("ot", ot)] if ot else others)
    assert result.decision.is_sampled()
    return members(result)


def test_a_kept_root_says_its_threshold() -> None:
    for entry in EntryKind:
        assert members(Decider(encode_word(50)).decide(HIGH, entry=entry)) == [("ot", "th:8")]
        assert members(Decider(encode_word(100)).decide(HIGH, entry=entry)) == [("ot", "th:0")]


def test_a_root_kept_by_the_default_says_the_threshold_of_the_default() -> None:
    assert members(Decider(0, default=encode_word(25)).decide(HIGH)) == [("ot", "th:c")]


def test_a_dropped_root_says_nothing() -> None:
    assert members(Decider(encode_word(50)).decide(LOW)) == []


@pytest.mark.parametrize("parent", KEPT)
@pytest.mark.parametrize("ot", ["", "th:8", "rv:ffffffffffffff", "th:c;rv:ffffffffffffff;x:1", "th:bad!"])
def test_follow_passes_the_trace_state_through_as_it_came(parent: Parent, ot: str) -> None:
    came = [("a", "1"), *([("ot", ot)] if ot else []), ("b", "2")]
    result = Decider(encode_word(10)).decide(LOW, parent, came)
    assert result.decision.is_sampled()
    assert members(result) == came


@pytest.mark.parametrize(("mode", "thin"), WAYS)
def test_a_dropped_local_parent_passes_its_trace_state_through(mode: Mode, thin: bool) -> None:
    result = Decider(encode_word(100, mode, thin=thin)).decide(HIGH, Parent.LOCAL_DROPPED, [("a", "1"), ("ot", "p:1")])
    assert members(result) == [("a", "1"), ("ot", "p:1")]


@pytest.mark.parametrize("mode", [Mode.BOOST, Mode.STRICT])
def test_an_entry_kept_against_its_parent_has_its_own_threshold(mode: Mode) -> None:
    word = encode_word(50, mode)
    assert passed_on(word, Parent.REMOTE_DROPPED) == [("ot", "th:8")]
    assert passed_on(word, Parent.REMOTE_DROPPED, "rv:ffffffffffffff") == [("ot", "th:8;rv:ffffffffffffff")]
    assert passed_on(word, Parent.REMOTE_DROPPED, "th:f;p:1", ("a", "1")) == [("ot", "th:8;p:1"), ("a", "1")]


def test_boost_lowers_the_threshold_and_never_raises_it() -> None:
    assert passed_on(encode_word(50, Mode.BOOST), Parent.REMOTE_KEPT, "th:c") == [("ot", "th:8")]
    assert passed_on(encode_word(25, Mode.BOOST), Parent.REMOTE_KEPT, "th:8") == [("ot", "th:8")]
    assert passed_on(encode_word(50, Mode.BOOST), Parent.REMOTE_KEPT, "th:8") == [("ot", "th:8")]


def test_boost_leaves_the_threshold_of_a_parent_that_alone_keeps_the_entry() -> None:
    assert passed_on(encode_word(25, Mode.BOOST), Parent.REMOTE_KEPT, "th:8", randomness=1 << 55) == [("ot", "th:8")]


@pytest.mark.parametrize("parent", KEPT)
def test_thin_raises_the_threshold_and_never_lowers_it(parent: Parent) -> None:
    assert passed_on(encode_word(25, thin=True), parent, "th:8") == [("ot", "th:c")]
    assert passed_on(encode_word(50, thin=True), parent, "th:c") == [("ot", "th:c")]
    assert passed_on(encode_word(50, thin=True), parent, "th:8") == [("ot", "th:8")]


@pytest.mark.parametrize("word", [encode_word(50, Mode.BOOST), encode_word(50, thin=True)])
@pytest.mark.parametrize("ot", ["rv:ffffffffffffff", "th:XYZ;p:1", "p:1"])
def test_where_the_parents_threshold_is_unknown_it_stays_unknown(word: int, ot: str) -> None:
    assert passed_on(word, Parent.REMOTE_KEPT, ot) == [("ot", ot)]
    assert passed_on(word, Parent.REMOTE_KEPT) == []


@pytest.mark.parametrize("ot", ["", "th:8", "th:f", "th:XYZ"])
def test_strict_has_its_own_threshold_whatever_the_parents_was(ot: str) -> None:
    assert passed_on(encode_word(25, Mode.STRICT), Parent.REMOTE_KEPT, ot) == [("ot", "th:c")]


@pytest.mark.parametrize("ot", ["", "th:8", "th:f", "th:XYZ"])
def test_boost_with_thin_has_its_own_threshold_for_the_parent_does_not_matter(ot: str) -> None:
    assert passed_on(encode_word(25, Mode.BOOST, thin=True), Parent.REMOTE_KEPT, ot) == [("ot", "th:c")]


@pytest.mark.parametrize("mode", Mode)
def test_a_child_within_the_process_is_kept_by_both_thresholds_in_every_mode(mode: Mode) -> None:
    assert passed_on(encode_word(50, mode, thin=True), Parent.LOCAL_KEPT, "th:c") == [("ot", "th:c")]
    assert passed_on(encode_word(25, mode, thin=True), Parent.LOCAL_KEPT, "th:8") == [("ot", "th:c")]


@pytest.mark.parametrize(
    ("word", "parent"),
    [(encode_word(10, Mode.STRICT), Parent.REMOTE_KEPT), (encode_word(10, thin=True), Parent.REMOTE_KEPT)]
    + [(encode_word(0, mode, thin=True), Parent.LOCAL_KEPT) for mode in Mode],
)
def test_a_drop_takes_the_threshold_away_and_nothing_else(word: int, parent: Parent) -> None:
    def dropped(*came: tuple[str, str]) -> list[tuple[str, str]]:
        result = Decider(word).decide(LOW, parent, came)
        assert not result.decision.is_sampled()
        return members(result)

    assert dropped(("a", "1"), ("ot", "th:8;p:1"), ("b", "2")) == [("ot", "p:1"), ("a", "1"), ("b", "2")]
    assert dropped(("a", "1"), ("ot", "th:8")) == [("a", "1")]
    assert dropped(("a", "1"), ("ot", "p:1")) == [("a", "1"), ("ot", "p:1")]
    assert dropped() == []


def test_the_changed_member_comes_first_and_the_others_keep_their_order() -> None:
    others = [("z", "1"), ("a", "2"), ("m", "3")]
    assert passed_on(encode_word(50, Mode.STRICT), Parent.REMOTE_KEPT, "p:1", *others) == [("ot", "th:8;p:1"), *others]


def test_there_are_never_more_than_32_members() -> None:
    others = [(f"vendor{number}", "v") for number in range(32)]
    word = encode_word(50, Mode.STRICT)
    assert passed_on(word, Parent.REMOTE_KEPT, "", *others) == others
    assert passed_on(word, Parent.REMOTE_KEPT, "", *others[1:]) == [("ot", "th:8"), *others[1:]]
    assert passed_on(word, Parent.REMOTE_KEPT, "th:0", *others[1:]) == [("ot", "th:8"), *others[1:]]


@pytest.mark.parametrize("parent", [Parent.REMOTE_KEPT, Parent.REMOTE_DROPPED])
@pytest.mark.parametrize("before", ["", "th:0;"])
def test_a_member_without_room_for_the_threshold_goes_on_without_one(parent: Parent, before: str) -> None:
    rest = "p:" + "x" * (254 - len(before))
    assert passed_on(encode_word(10, Mode.STRICT), parent, before + rest) == [("ot", rest)]
    rest = rest[: 256 - len("th:8;")]
    assert passed_on(encode_word(50, Mode.STRICT), parent, rest) == [("ot", "th:8;" + rest)]


keys = st.from_regex(r"[a-z][a-z0-9]{0,3}", fullmatch=True).filter(lambda key: key != "ot")
values = st.from_regex(r"[!-+\--<>-~]{1,8}", fullmatch=True)
ots = st.lists(
    st.one_of(
        st.from_regex(r"th:[0-9a-f]{1,14}", fullmatch=True),
        st.from_regex(r"rv:[0-9a-f]{14}", fullmatch=True),
        st.from_regex(r"x:[a-z]{1,200}", fullmatch=True),
    ),
    max_size=3,
).map(lambda parts: ";".join(parts)[:256])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(
    st.builds(encode_word, st.floats(0, 100), st.sampled_from(Mode), thin=st.booleans()),
    st.sampled_from(Parent),
    st.lists(st.tuples(keys, values), max_size=32, unique_by=lambda member: member[0]),
    ots,
    st.integers(1, 2**128 - 1),
)
def test_everything_passed_on_can_be_read_again_and_other_vendors_keep_theirs(
    word: int, parent: Parent, others: list[tuple[str, str]], ot: str, trace_id: int
) -> None:
    came = ([("ot", ot)] if ot else []) + others
    result = members(Decider(word).decide(trace_id, parent, came[:32]))
    header = ",".join(f"{key}={value}" for key, value in result)
    assert list(TraceState.from_header([header]).items()) == result
    assert [member for member in result if member[0] != "ot"] == (came[:32] if parent else [])[bool(ot) :]


@pytest.mark.parametrize(("mode", "thin"), WAYS)
@pytest.mark.parametrize("parents", [(Parent.REMOTE_DROPPED, Parent.REMOTE_KEPT), KEPT[1:] * 2])
def test_adjusted_counts_of_the_kept_spans_add_up_to_all_entries(
    mode: Mode, thin: bool, parents: tuple[Parent, Parent]
) -> None:
    steps = 64
    unit = (RANDOMNESS_MASK + 1) // steps
    for own, upstream in product((0, 16, 48, 60), (0, 16, 32, 60)):
        decider = Decider(encode_word(100 * (steps - own) / steps, mode, thin=thin))
        estimate = 0.0
        for step in range(steps):
            parent_kept = step >= upstream
            if parents[0] is parents[1] and not parent_kept:
                continue
            parent = parents[parent_kept]
            th = f"{upstream * unit:014x}".rstrip("0") or "0"
            result = decider.decide(step * unit or 1, parent, [("ot", f"th:{th}")] if parent_kept else [])
            if result.decision.is_sampled():
                threshold = parse_threshold(dict(members(result))["ot"])
                assert threshold is not None
                estimate += steps / (steps - threshold / unit)
        assert estimate == pytest.approx(steps), (own, upstream)


def test_never_is_thin_enough_for_every_child() -> None:
    word = encode_word(0, thin=True)
    assert word & Flag.NEVER
    assert not Decider(word).decide(HIGH, Parent.LOCAL_KEPT, [("ot", "th:0")]).decision.is_sampled()
