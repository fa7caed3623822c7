"""The checkout and its virtual environment. Standard library only: this runs before anything else can be imported."""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["ROOT", "enter"]

ROOT = Path(__file__).resolve().parent.parent
_VENV = ROOT / ".venv"
_PYTHON = _VENV / "bin" / "python"


def enter() -> None:
    """Go on under the checkout's interpreter, with `bench` and `tests` importable. Exits where there is none."""
    if Path(sys.prefix).resolve() != _VENV.resolve():
        if not _PYTHON.exists():
            sys.exit(f"{sys.argv[0]}: {_VENV} is missing: run deploy/setup")
        os.execv(_PYTHON, [str(_PYTHON), *sys.argv])
    # The script's own folder is there already, and would offer `report` beside `bench.report`.
    sys.path[0] = str(ROOT)
