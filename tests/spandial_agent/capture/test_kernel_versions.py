"""Following TLS must end no process: where a kernel would, it is left alone."""

from __future__ import annotations

import os

import pytest

from spandial_agent.capture.openssl import TlsCapture, ends_confined_processes
from spandial_agent.errors import KernelUnavailable


@pytest.mark.parametrize(
    ("release", "expected"),
    [
        ("5.17.0", False),
        ("6.1.0-56-amd64", False),
        ("6.10.14", False),
        ("6.11.0-rc1", True),
        ("6.12.3-cloud", True),
        ("6.13", True),
        ("6.14.0", False),
        ("6.18.44-fc-v657", False),
        ("7.0", False),
        ("unknown", False),
    ],
)
def test_the_kernels_whose_return_probes_may_end_processes(release: str, expected: bool) -> None:
    assert ends_confined_processes(release) is expected


def test_on_such_a_kernel_nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "host", "6.12.3", "#1", "x86_64")))
    with pytest.raises(KernelUnavailable, match=r"6\.11 to 6\.13"):
        TlsCapture({}, (), {})
