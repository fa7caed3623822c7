"""Names that a process gives itself, whatever bytes they are made of."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from spandial_agent.processes.proc import read_process

_NAMES = b"import os,sys; open('/proc/self/comm', 'wb').write(b'e\\xffv\\x1b[2J'); print(flush=True); sys.stdin.read()"


@pytest.fixture
def hostile() -> Iterator[int]:
    names = {
        b"OTEL_SERVICE_NAME": b"check\x1b[2Jout\n\xff" + b"x" * 5000,
        b"OTEL_RESOURCE_ATTRIBUTES": b"service.version=%0a\xe2\x80\xae1,deployment.environment.name=%ff,a=%1b",
    }
    program = [sys.executable.encode(), b"-c", _NAMES]
    with subprocess.Popen(program, env=names, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.stdin.close()


def test_names_are_printable_and_bounded(hostile: int) -> None:
    process = read_process(hostile)
    assert process is not None
    assert process.name == r"e\xffv\x1b[2J"
    labels = process.labels
    assert labels.service.startswith(r"check\x1b[2Jout\n")
    assert len(labels.service) == 255
    assert labels.version == r"\n\u202e1"
    assert all(label.isprintable() for label in labels[:4])
    assert labels.others == ()
