"""From a BPF source to its instructions and maps: bcc, in a process of its own (bcc_process.py)."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from spandial_agent.errors import KernelUnavailable
from spandial_agent.kernel.compiled import FORMAT, Compiled, MapDefinition, resolve
from spandial_agent.kernel.source import bpf_directory, join_source

__all__ = ["Build", "compile_build", "last_lines", "missing_to_compile", "toolchain"]

# Where bcc is, also for a virtual environment.
_SYSTEM_PACKAGES = "/usr/lib/python3/dist-packages"
_MODULES = Path("/lib/modules")
_KHEADERS = Path("/sys/kernel/kheaders.tar.xz")


@dataclass(frozen=True)
class Build:
    """What is compiled.

    Args:
        source: file name under `bpf/`, or a path.
        defines: macros.
        shared: names of the tables that the source takes from others (BPF_TABLE("extern", ...)); `bpf/<name>.c`
            exports each.
    """

    source: str | Path
    defines: dict[str, int] = field(default_factory=dict)
    shared: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        return bpf_directory() / self.source

    @property
    def name(self) -> str:
        """The source's, and a few digits for the defines: one for each variant that an agent may use."""
        variant = json.dumps([sorted(self.defines.items()), self.shared]).encode()
        return f"{self.path.stem}-{hashlib.sha256(variant).hexdigest()[:12]}"

    def key(self) -> str:
        """Everything that the instructions depend on but the toolchain, as a SHA-256 in hexadecimal. Raises OSError.

        The running kernel is in there because bcc asks it which instructions and maps it knows.
        """
        kernel = os.uname()
        digest = hashlib.sha256()
        for part in (str(FORMAT), kernel.release, kernel.version, kernel.machine, self.name, *self.texts()):
            digest.update(f"{len(part)}:{part}".encode())
        return digest.hexdigest()

    def texts(self) -> list[str]:
        """What the compiler is handed: the sources that export the shared tables, then its own. Raises OSError."""
        folder = bpf_directory()
        return [join_source(path, folder) for path in (*(folder / f"{name}.c" for name in self.shared), self.path)]


def missing_to_compile(modules: Path = _MODULES) -> list[str]:
    """One sentence for each thing that a compilation needs and this host does not have."""
    missing = []
    if _bcc_folder() is None:
        missing.append("bcc cannot be imported (there is no such module): install python3-bpfcc.")
    release = os.uname().release
    folder = modules / release
    if not (folder / "build").exists() and not _KHEADERS.exists():
        missing.append(
            f"there are no kernel headers at {folder}/build: install linux-headers-{release}, "
            "or run deploy/setup, which puts a stand-in there."
        )
    return missing


def toolchain() -> str | None:
    """Which bcc and which headers compile here, as a SHA-256 in hexadecimal; None if something is missing."""
    bcc = _bcc_folder()
    if bcc is None or missing_to_compile():
        return None
    parts = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("BCC_")]
    parts.append((bcc / "bcc" / "version.py").read_text())
    for tree in ("build", "source"):
        folder = (_MODULES / os.uname().release / tree).resolve()
        parts.append(str(folder))
        # Written anew by every build of the headers.
        configuration = folder / "include" / "generated" / "autoconf.h"
        if configuration.exists():
            known = configuration.stat()
            parts.append(f"{known.st_size} {known.st_mtime_ns}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def compile_build(build: Build) -> Compiled:
    """Compile, which takes seconds. Raises KernelUnavailable with the reason, which is clang's last words or that
    something is missing."""
    if missing := missing_to_compile():
        raise KernelUnavailable(missing)
    request = {
        "bcc": str(_bcc_folder()),
        "sources": build.texts(),
        # Without the first, bcc warns of macros that its own headers define twice on newer kernels.
        "flags": ["-Wno-macro-redefined", *(f"-D{n}={value}" for n, value in build.defines.items())],
    }
    # Isolated (-I): neither the working directory nor the environment say what a process of root's imports.
    command = [sys.executable, "-I", str(Path(__file__).with_name("bcc_process.py"))]
    try:
        ended = subprocess.run(command, input=json.dumps(request).encode(), capture_output=True)
    except OSError as error:
        raise KernelUnavailable([f"the compiler cannot be started: {error}."]) from error
    said = ended.stderr.decode(errors="replace").strip()
    try:
        answer = json.loads(ended.stdout)
    except ValueError:
        reason = last_lines(said) or f"the compiler ended with {ended.returncode}"
        raise KernelUnavailable([f"{build.source} does not compile: {reason}"]) from None
    if "error" in answer:
        if not answer["imported"]:
            raise KernelUnavailable([f"bcc cannot be imported ({answer['error']}): install python3-bpfcc."])
        raise KernelUnavailable([f"{build.source} does not compile: {last_lines(said or answer['error'])}"])
    names = {descriptor: name for name, (descriptor, *_) in answer["tables"].items()}
    return Compiled(
        maps={
            name: MapDefinition(*definition)
            for name, (_, *definition) in answer["tables"].items()
            if name not in build.shared
        },
        functions={name: resolve(bytes.fromhex(code), names) for name, code in answer["functions"].items()},
    )


def last_lines(text: str) -> str:
    return " ".join(line.strip() for line in text.splitlines()[-3:])


def _bcc_folder() -> Path | None:
    """The folder with the package of the BPF Compiler Collection: the PyPI project of that name is something else."""
    for folder in (*sys.path, _SYSTEM_PACKAGES):
        if Path(folder, "bcc", "libbcc.py").is_file():
            return Path(folder).resolve()
    return None
