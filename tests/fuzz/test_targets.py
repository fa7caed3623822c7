"""The fuzzer's targets hold for their seeds, and for some bytes behind these."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_the_seeds_are_no_findings(name: str) -> None:
    for seed in TARGETS[name].seeds:
        for length in range(len(seed) + 1):
            TARGETS[name].run(seed[:length])


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.data())
def test_nor_are_other_bytes(name: str, data: st.DataObject) -> None:
    target = TARGETS[name]
    target.run(data.draw(st.sampled_from([b"", *target.seeds])) + data.draw(st.binary(max_size=300)))
