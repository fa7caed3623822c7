"""Fuzz one target: `python -m tests.fuzz.fuzz NAME SECONDS FOLDER`. What made it fail is left in the folder.

Exit code 0 if nothing did.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["spandial_agent.records.protocols", "hpack"]):
    from tests.fuzz.targets import TARGETS

_LENGTH_MAX = 4096  # bytes of an input
_SLOW_S = 5  # an input that takes longer is a finding


def main(name: str, seconds: str, folder: str) -> None:
    target = TARGETS[name]
    corpus = Path(folder) / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds):
        (corpus / f"seed{number}").write_bytes(seed)
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={_LENGTH_MAX}",
        f"-timeout={_SLOW_S}",
        f"-artifact_prefix={folder}/",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
