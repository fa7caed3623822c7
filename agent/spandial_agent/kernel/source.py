"""Where the BPF sources are, and a source as one text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

__all__ = ["bpf_directory", "join_source"]

_INCLUDE = re.compile(r'\s*#\s*include\s+"([^"]+)"')


def bpf_directory() -> Path:
    """The folder of the BPF sources: package data of an installed agent, else the checkout's `bpf/`."""
    packaged = Path(__file__).resolve().parent.parent / "bpf"
    return packaged if packaged.is_dir() else Path(__file__).resolve().parents[3] / "bpf"


def join_source(source: Path, folder: Path) -> str:
    """A source with all that it includes from a folder, each file once, at its first mention: bcc rewrites accesses to
    maps, and exports functions, in the main file alone. #line directives keep the files' names for the compiler's
    messages.

    Raises OSError where one cannot be read. What is not in the folder stays an #include, for the compiler to name.
    """
    return "\n".join(_lines(source, source.name, folder, set())) + "\n"


def _lines(path: Path, name: str, folder: Path, known: set[str]) -> Iterator[str]:
    yield f'#line 1 "{name}"'
    for number, line in enumerate(path.read_text().splitlines(), 1):
        included = _INCLUDE.match(line)
        if included is None or not (folder / included[1]).is_file():
            yield line
        elif included[1] not in known:
            known.add(included[1])
            yield from _lines(folder / included[1], included[1], folder, known)
            yield f'#line {number + 1} "{name}"'
        else:
            yield ""
