"""What this host lacks for the kernel side, in sentences for a person."""

from __future__ import annotations

import platform
from pathlib import Path

from spandial_agent.kernel.compiler import missing_to_compile

__all__ = ["missing_for_kernel"]

# Bits of CapEff: include/uapi/linux/capability.h.
_SYS_ADMIN, _PERFMON, _BPF = 21, 38, 39
_ARCHITECTURES = ("x86_64", "aarch64")


def missing_for_kernel(
    status: Path = Path("/proc/self/status"),
    modules: Path = Path("/lib/modules"),
    lockdown: Path = Path("/sys/kernel/security/lockdown"),
    *,
    compiled: bool = False,
) -> list[str]:
    """One sentence for each thing that capture needs and this host does not have; empty if nothing is missing.

    Args:
        compiled: nothing is to be compiled (`capture.is_compiled`): neither bcc nor headers are needed.
    """
    missing = []
    if platform.machine() not in _ARCHITECTURES:
        missing.append(f"{platform.machine()} is not supported: capture knows {' and '.join(_ARCHITECTURES)}.")
    capabilities = _effective_capabilities(status)
    if not (capabilities >> _SYS_ADMIN & 1 or (capabilities >> _BPF & 1 and capabilities >> _PERFMON & 1)):
        missing.append("the agent may not load BPF programs: run it as root, or with CAP_BPF and CAP_PERFMON.")
    if _lockdown_mode(lockdown) == "confidentiality":
        missing.append("the kernel is locked down (confidentiality): BPF may not read memory.")
    if not compiled:
        missing += missing_to_compile(modules)
    return missing


def _effective_capabilities(status: Path) -> int:
    for line in status.read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def _lockdown_mode(lockdown: Path) -> str:
    try:
        text = lockdown.read_text()
    except OSError:
        return "none"
    return text.partition("[")[2].partition("]")[0] or "none"
