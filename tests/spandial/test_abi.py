"""The rate word: from a percentage and back."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from spandial.abi import MAX_THRESHOLD, RANDOMNESS_MASK, Flag, Mode, encode_word, threshold_of, word_rate

SMALLEST = 100 / MAX_THRESHOLD
LARGEST = math.nextafter(100, 0)


@pytest.mark.parametrize(
    ("rate", "threshold"),
    [
        (100, 0),
        (100.0, 0),
        (50, 0x80000000000000),
        (25, 0xC0000000000000),
        (10, 0xE6666666666666),
        (SMALLEST, RANDOMNESS_MASK),
        (LARGEST, 8),
    ],
)
def test_a_rate_becomes_the_threshold_of_consistent_probability_sampling(rate: float, threshold: int) -> None:
    word = encode_word(rate)
    assert (threshold_of(word), word & 0xFF) == (threshold, Flag.VALID)


@pytest.mark.parametrize("rate", [0, 0.0, -0.0, SMALLEST / 2.001, 5e-324])
def test_a_rate_too_small_for_the_threshold_is_rate_zero(rate: float) -> None:
    word = encode_word(rate)
    assert word & Flag.NEVER
    assert threshold_of(word) == MAX_THRESHOLD
    assert word_rate(word) == 0


@given(st.floats(0, 100))
@example(0.0)
@example(100.0)
@example(SMALLEST)
@example(LARGEST)
def test_a_rate_survives_the_word_to_within_half_a_threshold_step(rate: float) -> None:
    found = word_rate(encode_word(rate))
    assert found is not None
    assert math.isclose(found, rate, rel_tol=1e-15, abs_tol=SMALLEST / 2)


@given(st.integers(1, 2**51))
def test_a_threshold_survives_its_rate(kept: int) -> None:
    word = (MAX_THRESHOLD - kept) << 8 | Flag.VALID
    rate = word_rate(word)
    assert rate is not None
    assert encode_word(rate) == word


@given(st.floats(0, 100), st.sampled_from(Mode), st.booleans(), st.booleans())
def test_a_word_carries_its_mode_and_flags_and_fits_64_bits(rate: float, mode: Mode, emit: bool, thin: bool) -> None:
    word = encode_word(rate, mode, emit=emit, thin=thin)
    assert 0 <= word < 1 << 64
    assert word & Flag.VALID
    assert word & 3 == mode
    assert bool(word & Flag.EMIT) is emit
    assert bool(word & Flag.THIN) is thin


@pytest.mark.parametrize("rate", [-1, -5e-324, math.nextafter(100, 101), 101, math.inf, -math.inf, math.nan])
def test_a_rate_out_of_range_has_no_word(rate: float) -> None:
    with pytest.raises(ValueError, match=re.escape(f"from 0 to 100, not {rate!r}")):
        encode_word(rate)


def test_a_word_that_is_not_valid_has_no_rate() -> None:
    assert word_rate(0) is None
    assert word_rate(encode_word(50) & ~Flag.VALID) is None
