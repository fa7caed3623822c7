"""What the programs cost is known while somebody asks for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from spandial_agent.kernel.run_time import run_time_taken
from tests.in_kernel.conftest import Watched
from tests.in_kernel.test_capture import REQUEST
from tests.in_kernel.test_databases import Pair

pytestmark = pytest.mark.kernel


def run_time_ns(watched: Watched) -> int:
    return sum(program.run_time_ns for program in watched.capture.programs)


def test_run_time_is_taken_meanwhile_alone(watched: Watched) -> None:
    pair, stats = Pair(), Path("/proc/sys/kernel/bpf_stats_enabled").read_text()
    with run_time_taken():
        before = run_time_ns(watched)
        pair.send(*[REQUEST] * 10)
        assert run_time_ns(watched) > before
    assert Path("/proc/sys/kernel/bpf_stats_enabled").read_text() == stats
    pair.close()
