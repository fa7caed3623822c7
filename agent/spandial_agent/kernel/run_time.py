"""The time that BPF programs take, which the kernel takes where somebody asks for it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from spandial_agent.kernel.libbpf import check, libbpf

__all__ = ["run_time_taken"]

_BPF_STATS_RUN_TIME = 0  # enum bpf_stats_type of include/uapi/linux/bpf.h


@contextlib.contextmanager
def run_time_taken() -> Iterator[None]:
    """Meanwhile `run_time_ns` of all programs goes on, whatever `kernel.bpf_stats_enabled` says (BPF_ENABLE_STATS,
    Linux 5.8, commit d46edd671a14; it needs CAP_SYS_ADMIN). Raises OSError."""
    descriptor = int(libbpf().bpf_enable_stats(_BPF_STATS_RUN_TIME))
    check(descriptor, "bpf_enable_stats")
    try:
        yield
    finally:
        os.close(descriptor)
