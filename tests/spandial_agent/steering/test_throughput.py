"""Rules with a target, on simulated traffic."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spandial.abi import Mode
from spandial_agent.steering.throughput import FIRST_RATE, Load, Throughput, Window, load_of
from spandial_api.rules import Rule
from spandial_api.selectors import KindName, Selector
from tests.spandial_agent.steering.traffic import Mix, Second, Simulation


def rule(target: float, mode: Mode = Mode.FOLLOW, protocol: KindName | None = None, floor: float = 0.001) -> Rule:
    return Rule(Selector(service="shop", protocol=protocol), None, mode, target=target, floor=floor)


def hits(seconds: list[Second], target: float, within: float = 0.1) -> None:
    for second in seconds:
        assert second.expected == pytest.approx(target, rel=within), second


MIXES = st.builds(Mix, st.floats(0, 0.99), st.floats(0, 0.01), st.floats(0, 0.8))
STEPS = st.floats(0, 5).flatmap(lambda power: st.permutations([10**power, 10 ** (power + 1)]))
MODES = st.sampled_from(Mode)


@given(STEPS, st.floats(-3, -0.01), st.sampled_from([0.5, 1.0]), st.floats(20, 22))
@settings(max_examples=300)
def test_within_a_tenth_three_seconds_after_a_tenfold_step(
    step: list[float], share: float, window_s: float, begin: float
) -> None:
    """1 to 1,000,000 requests/s, up and down, wherever in a window the step comes."""
    load, after = step
    target = load * 10**share
    simulation = Simulation(rule(target), window_s=window_s)
    simulation.run(24 + window_s, lambda now: load if now < begin else after)
    settled = simulation.run(10, after)
    # Requests come whole: of few, three seconds tell only so much.
    hits(settled, min(target, after), within=0.1 + 1 / after)
    assert after < 1000 or max(s.rate for s in settled) < 1.03 * min(s.rate for s in settled)


@given(STEPS, st.floats(-3, -0.01), st.integers(0, 10**6))
@settings(max_examples=300, derandomize=True)  # of so many steps by chance, one in some thousands is late
def test_the_same_where_requests_come_by_chance(step: list[float], share: float, seed: int) -> None:
    load, after = step
    target = load * 10**share
    simulation = Simulation(rule(target), seed=seed)
    simulation.run(40, load)
    simulation.run(3 if min(step) >= 30 else 10, after)  # of few requests, three seconds may tell nothing
    # What chance adds: to the counts of three seconds, and to the few thousand that the share of drawn ones is from.
    chance = 5 / math.sqrt(3 * after) + 5 / math.sqrt(200 + min(40 * target, 2000))
    hits(simulation.run(5, after), min(target, after), within=0.1 + chance)


@given(MIXES, MODES, st.sampled_from([None, "http"]), st.integers(0, 10**6))
@settings(max_examples=100)
def test_the_target_is_met_in_every_mode_and_mix(mix: Mix, mode: Mode, protocol: KindName | None, seed: int) -> None:
    if mode != Mode.FOLLOW or protocol:
        mix = mix._replace(by_operation=0)  # of traced entries it is not known whose rule dropped them
    simulation = Simulation(rule(200, mode, protocol), mix=mix, seed=seed)
    simulation.run(60, 20_000)
    forced = 0 if mode == Mode.STRICT or protocol else 20_000 * mix.traced * mix.parents_kept
    drawable = 20_000 * (1 - mix.traced) * (1 - mix.by_operation)
    if mode != Mode.FOLLOW:
        drawable = 20_000 - forced
    elif protocol:
        drawable += 20_000 * mix.traced * mix.parents_kept
    met = simulation.run(20, 20_000)
    mean = sum(second.expected for second in met) / len(met)
    assert mean == pytest.approx(max(forced, min(200, forced + drawable)), rel=0.1)


def test_parents_that_keep_more_than_the_target_leave_the_floor_to_the_rest() -> None:
    simulation = Simulation(rule(100, floor=0.5), mix=Mix(traced=0.5, parents_kept=0.1))
    assert simulation.run(10, 10_000)[-1].rate == 0.5


def test_a_rate_never_falls_below_its_floor() -> None:
    simulation = Simulation(rule(1, floor=0.1))
    seen = simulation.run(20, 1_000_000)
    assert min(second.rate for second in seen) == 0.1


def test_what_rules_by_operation_drop_is_made_up_for() -> None:
    simulation = Simulation(rule(100), mix=Mix(by_operation=0.9), seed=5)
    simulation.run(120, 5000)
    hits(simulation.run(10, 5000), 100, within=0.15)


def test_an_even_load_under_chance_makes_no_waves() -> None:
    simulation = Simulation(rule(100), seed=11)
    simulation.run(30, 5000)
    rates = [second.rate for second in simulation.run(120, 5000)]
    assert max(rates) / min(rates) < 1.2
    turns = sum((b - a) * (c - b) < 0 for a, b, c in zip(rates, rates[1:], rates[2:]))
    assert turns < len(rates) / 5


@pytest.mark.parametrize("low", [0, 100])
def test_bursts_of_a_second_are_kept_at_the_target_on_average(low: float) -> None:
    simulation = Simulation(rule(100), seed=3)
    simulation.run(10, lambda now: 2000 if int(now) % 2 else low)
    seen = simulation.run(120, lambda now: 2000 if int(now) % 2 else low)
    assert sum(second.kept for second in seen) / len(seen) == pytest.approx(100, rel=0.15)
    assert max(second.expected for second in seen) < 300


def test_a_load_that_comes_back_floods_for_one_window_and_with_a_bound() -> None:
    simulation = Simulation(rule(100))
    simulation.run(20, 100_000)
    for quiet in (0, 1):
        simulation.run(30, quiet)
        first, second, *rest = simulation.run(10, 100_000)
        assert first.expected <= 16 * 100 * 2 * 1.01
        hits([second, *rest], 100)


def test_in_silence_the_rate_rises_slowly_and_ends_at_100() -> None:
    simulation = Simulation(rule(100))
    simulation.run(20, 100_000)
    seen = simulation.run(60, 0)
    assert 0.1 <= seen[-1].rate <= 0.25
    assert simulation.run(900, 0)[-1].rate == 100


def test_rare_entries_after_a_great_load_are_kept_again_before_long() -> None:
    simulation = Simulation(rule(100))
    simulation.run(20, 100_000)
    assert simulation.run(240, 0.5)[-1].rate == 100


def test_before_it_is_measured_a_rule_begins_at_one_percent_or_its_floor() -> None:
    assert Throughput(rule(100)).rate == FIRST_RATE
    assert Throughput(rule(100, floor=5)).rate == 5


def test_a_rule_that_replaces_another_begins_with_what_is_known() -> None:
    steered = Throughput(rule(100))
    steered.add(Window(1, untraced=10_000, by_rate=None, traced_by_rate=None))
    assert steered.rate == pytest.approx(1)
    steered.put(rule(500))
    assert steered.rate == pytest.approx(5)
    steered.put(rule(500, floor=20))
    assert steered.rate == 20


def test_a_window_in_which_the_rate_was_changed_tells_of_the_load_alone() -> None:
    steered = Throughput(rule(100))
    for _ in range(10):
        steered.add(Window(1, untraced=1000, untraced_kept=900, by_rate=None, traced_by_rate=None))
    assert steered.load == Load(0, 1000)


def test_windows_of_several_targets_add_up() -> None:
    together = Window.together([Window(1, 10, 1, 20, 2, 5, 6), Window(1, 1, 1, 2, 2, 1, 2)])
    assert together == Window(1, 11, 2, 22, 4, 6, 8)
    assert Window.together([together, Window(1, by_rate=None)]).by_rate is None


@pytest.mark.parametrize(
    ("mode", "thins", "load"),
    [
        (Mode.FOLLOW, False, Load(forced=55, drawn=100)),
        (Mode.FOLLOW, True, Load(forced=0, drawn=100 + 110)),
        (Mode.BOOST, False, Load(forced=10, drawn=100 + 90)),
        (Mode.BOOST, True, Load(forced=0, drawn=200)),
        (Mode.STRICT, False, Load(forced=0, drawn=200)),
    ],
)
def test_what_is_forced_and_what_is_drawn_by_mode(mode: Mode, thins: bool, load: Load) -> None:
    kept = 110 if mode == Mode.FOLLOW and thins else 55
    rate = 1.0 if mode == Mode.FOLLOW and thins else 0.5
    traced = 110 if mode == Mode.FOLLOW and thins else 100
    assert load_of(mode, thins, 100, traced, kept, rate) == load


def test_the_load_at_a_rate_is_what_is_forced_and_what_is_drawn() -> None:
    assert Load(forced=10, drawn=200).kept(5) == 20
