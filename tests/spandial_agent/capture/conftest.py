"""A library with the functions that are looked for."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

FUNCTIONS = "int SSL_read(void) { return 1; } int SSL_write(void) { return 2; }"


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("library") / "libssl.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-x", "c", "-o", made, "-"], input=FUNCTIONS, text=True, check=True)
    return made
