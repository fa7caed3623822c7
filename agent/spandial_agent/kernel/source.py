"""Where the BPF sources are."""

from __future__ import annotations

from pathlib import Path

__all__ = ["bpf_directory"]


def bpf_directory() -> Path:
    """The folder of the BPF sources: package data of an installed agent, else the checkout's `bpf/`."""
    packaged = Path(__file__).resolve().parent.parent / "bpf"
    return packaged if packaged.is_dir() else Path(__file__).resolve().parents[3] / "bpf"
