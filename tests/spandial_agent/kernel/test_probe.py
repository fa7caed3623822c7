"""What a host lacks for the kernel side, on hosts made of files."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from spandial_agent.kernel import compiler
from spandial_agent.kernel.probe import missing_for_kernel

SYS_ADMIN, PERFMON, BPF = 1 << 21, 1 << 38, 1 << 39


class Host:
    """A host on which nothing is missing."""

    def __init__(self, folder: Path) -> None:
        self.status = folder / "status"
        self.modules = folder / "modules"
        self.lockdown = folder / "lockdown"
        self.headers = self.modules / os.uname().release / "build"
        self.headers.mkdir(parents=True)
        self.may(SYS_ADMIN)
        self.lockdown.write_text("[none] integrity confidentiality\n")

    def may(self, capabilities: int) -> None:
        self.status.write_text(f"Name:\tx\nCapInh:\t0\nCapEff:\t{capabilities:016x}\nCapBnd:\t{2**40 - 1:016x}\n")

    def missing(self, *, compiled: bool = False) -> list[str]:
        return missing_for_kernel(self.status, self.modules, self.lockdown, compiled=compiled)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(compiler, "_bcc_folder", lambda: Path("/"))
    return Host(tmp_path)


def only(sentences: list[str]) -> str:
    [sentence] = sentences
    assert sentence.endswith(".")
    return sentence


def test_on_a_whole_host_nothing_is_missing(host: Host) -> None:
    assert host.missing() == []


@pytest.mark.parametrize("capabilities", [SYS_ADMIN, BPF | PERFMON, SYS_ADMIN | BPF])
def test_either_of_two_sets_of_capabilities_will_do(host: Host, capabilities: int) -> None:
    host.may(capabilities)
    assert host.missing() == []


@pytest.mark.parametrize("capabilities", [0, BPF, PERFMON, ~(SYS_ADMIN | BPF) & (2**40 - 1)])
def test_without_capabilities_it_says_how_to_get_them(host: Host, capabilities: int) -> None:
    host.may(capabilities)
    sentence = only(host.missing())
    assert "root" in sentence
    assert "CAP_BPF and CAP_PERFMON" in sentence


def test_a_status_without_capabilities_has_none(host: Host) -> None:
    host.status.write_text("Name:\tx\n")
    assert "may not load BPF programs" in only(host.missing())


@pytest.mark.parametrize(
    ("mode", "locked"),
    [
        ("[none] integrity confidentiality", False),
        ("none [integrity] confidentiality", False),
        ("none integrity [confidentiality]", True),
        ("", False),
    ],
)
def test_only_confidentiality_locks_capture_out(host: Host, mode: str, locked: bool) -> None:
    host.lockdown.write_text(mode)
    assert [("locked down" in sentence) for sentence in host.missing()] == [True] * locked


def test_a_kernel_without_lockdown_is_not_locked(host: Host) -> None:
    host.lockdown.unlink()
    assert host.missing() == []


def test_without_bcc_it_names_the_package(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_bcc_folder", lambda: None)
    assert "install python3-bpfcc" in only(host.missing())


def test_what_was_compiled_needs_neither_bcc_nor_headers(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_bcc_folder", lambda: None)
    host.headers.rmdir()
    assert host.missing(compiled=True) == []
    host.may(0)
    assert "may not load BPF programs" in only(host.missing(compiled=True))


@pytest.mark.skipif(Path("/sys/kernel/kheaders.tar.xz").exists(), reason="this kernel carries its headers")
def test_without_kernel_headers_it_names_the_package(host: Host) -> None:
    host.headers.rmdir()
    sentence = only(host.missing())
    assert str(host.headers) in sentence
    assert f"linux-headers-{os.uname().release}" in sentence


def test_another_architecture_is_named(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    sentence = only(host.missing())
    assert "riscv64" in sentence
    assert "x86_64 and aarch64" in sentence


def test_everything_that_is_missing_is_named_at_once(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    host.may(0)
    host.lockdown.write_text("[confidentiality]")
    assert len(host.missing()) == 3
