"""The loaded BPF program decides as the Python function does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spandial.abi import MAX_THRESHOLD, RANDOMNESS_MASK, Flag, Mode, Parent, encode_word, threshold_of
from spandial.decision import choose_word, decide
from spandial_agent.kernel.cache import CompileCache
from spandial_agent.kernel.compiler import Build
from spandial_agent.kernel.libbpf import RawTracepointRun
from spandial_agent.kernel.loader import Module
from tests.agent_process import COMPILED

pytestmark = pytest.mark.kernel

VECTORS = Path(__file__).parent.parent / "vectors" / "decision.json"
SMALLEST = 100 / MAX_THRESHOLD
LARGEST = 100 * (1 - 2**-53)

rates = st.one_of(st.sampled_from([0.0, 100.0, SMALLEST, SMALLEST / 2, LARGEST, 0.1, 10.0, 50.0]), st.floats(0, 100))
words = st.one_of(
    st.builds(encode_word, rates, st.sampled_from(Mode), emit=st.booleans(), thin=st.booleans()),
    st.integers(0, 2**64 - 1),
    st.builds(lambda threshold, flags: threshold << 8 | flags, st.integers(0, RANDOMNESS_MASK), st.integers(0, 255)),
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[int, int]:
    """A word, and a randomness that is often right at its threshold."""
    word = draw(words)
    threshold = threshold_of(word)
    near = [r for r in (threshold - 1, threshold, threshold + 1, 0, RANDOMNESS_MASK) if 0 <= r <= RANDOMNESS_MASK]
    return word, draw(st.one_of(st.sampled_from(near), st.integers(0, RANDOMNESS_MASK)))


@pytest.fixture(scope="module")
def module() -> Iterator[Module]:
    module = Module(Build(Path(__file__).parent / "decide.c"), cache=CompileCache(COMPILED))
    yield module
    module.close()


@pytest.fixture(scope="module")
def program(module: Module) -> RawTracepointRun:
    return RawTracepointRun(module.load("decide"))


def test_program_and_function_agree_on_fifty_thousand_generated_cases(program: RawTracepointRun) -> None:
    compared = 0

    # Every example is compared for each of the five parents.
    @settings(max_examples=10_500, suppress_health_check=list(HealthCheck))
    @given(cases())
    def compare(case: tuple[int, int]) -> None:
        nonlocal compared
        word, randomness = case
        for parent in Parent:
            assert bool(program(word, randomness, parent)) == decide(word, randomness, parent), (case, parent)
            compared += 1

    compare()
    assert compared >= 50_000


def test_program_and_function_agree_at_every_edge(program: RawTracepointRun) -> None:
    for rate in (0.0, SMALLEST, 0.1, 10.0, 50.0, 99.9, LARGEST, 100.0):
        for mode in Mode:
            for flags in (0, Flag.THIN, Flag.EMIT, Flag.THIN | Flag.EMIT):
                word = encode_word(rate, mode) | flags
                threshold = threshold_of(word)
                for randomness in {0, 1, threshold - 1, threshold, threshold + 1, RANDOMNESS_MASK}:
                    if not 0 <= randomness <= RANDOMNESS_MASK:
                        continue
                    for parent in Parent:
                        for valid in (word, word & ~Flag.VALID):
                            expected = decide(valid, randomness, parent)
                            assert bool(program(valid, randomness, parent)) == expected


def test_program_keeps_the_shared_vectors(program: RawTracepointRun) -> None:
    vectors = json.loads(VECTORS.read_text())
    assert len(vectors) >= 100
    for vector in vectors:
        word, randomness = (int(str(vector[name]), 16) for name in ("word", "randomness"))
        assert bool(program(word, randomness, Parent[str(vector["parent"])])) == vector["keep"], vector


def test_program_and_function_choose_the_same_word_around_the_lease(module: Module) -> None:
    choose = RawTracepointRun(module.load("choose"))
    for deadline in (0, 1, 10**9, 2**63):
        for now in {max(deadline - 1, 0), deadline, deadline + 1}:
            assert bool(choose(1, 2, deadline, now)) == (choose_word(1, 2, deadline, now) == 1)
