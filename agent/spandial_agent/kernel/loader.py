"""Compile, load and attach BPF programs. The only module that imports bcc."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from spandial_agent.errors import KernelUnavailable
from spandial_agent.kernel.libbpf import attach_tracepoint, load_program
from spandial_agent.kernel.linker import link
from spandial_agent.kernel.source import bpf_directory

__all__ = ["Module", "import_bcc", "release_compiler_memory"]

_SYSTEM_PACKAGES = "/usr/lib/python3/dist-packages"


def import_bcc() -> Any:
    """The system's bcc, also from a virtual environment. Raises KernelUnavailable.

    Its folder is the last on the path, and only during the import: nothing else may come from there.
    """
    added = _SYSTEM_PACKAGES not in sys.path
    if added:
        sys.path.append(_SYSTEM_PACKAGES)
    try:
        import bcc

        # The PyPI project of the same name is something else.
        if not hasattr(bcc, "BPF"):
            raise ImportError(f"{bcc.__file__} is not the BPF Compiler Collection")
        return bcc
    except (ImportError, OSError, AttributeError) as error:
        raise KernelUnavailable([f"bcc cannot be imported ({error}): install python3-bpfcc."]) from error
    finally:
        if added:
            sys.path.remove(_SYSTEM_PACKAGES)


def release_compiler_memory() -> None:
    """Give back what clang has freed: 50 MB that the allocator would keep. Where it is not glibc's, nothing happens."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class Module:
    """One compiled BPF source file and its maps.

    Args:
        source: file name under `bpf/`, or a path.
        defines: macros.

    Raises KernelUnavailable.
    """

    def __init__(self, source: str | Path, defines: dict[str, int] | None = None) -> None:
        bcc = import_bcc()
        folder = bpf_directory()
        # Without this, bcc warns of macros that its own headers define twice on newer kernels.
        flags = [f"-I{folder}", "-Wno-macro-redefined"]
        flags += [f"-D{name}={value}" for name, value in (defines or {}).items()]
        try:
            with _quiet_stderr() as said:
                self._bpf = bcc.BPF(src_file=os.fsencode(folder / source), cflags=flags)
        except Exception as error:
            raise KernelUnavailable([f"{source} does not compile: {_reason(error, said)}"]) from error
        self._descriptors: list[int] = []
        self._links: list[int] = []

    def load(
        self,
        function: str,
        *,
        callbacks: Sequence[str] = (),
        typed_tracepoint: str | None = None,
        uprobe: bool = False,
        maps: Mapping[str, int] | None = None,
    ) -> int:
        """Load a program; its descriptor, which the module closes.

        Args:
            function: a raw tracepoint program.
            callbacks: the functions that it hands to bpf_loop by number, from 1 on.
            typed_tracepoint: the tracepoint, where the program's arguments are to have their types.
            uprobe: it is for uprobes instead.
            maps: descriptors of another module's maps, which it is to use instead of this one's.

        Raises KernelUnavailable with the verifier's last words.
        """
        numbered = {number: self._bpf.dump_func(name.encode()) for number, name in enumerate(callbacks, 1)}
        shared = {self.map_fd(name): descriptor for name, descriptor in (maps or {}).items()}
        code, functions = link(self._bpf.dump_func(function.encode()), numbered, shared)
        try:
            program = load_program(function, code, functions, typed_tracepoint, uprobe)
        except OSError as error:
            raise KernelUnavailable(
                [f"the kernel refuses the program {function}: {_last_lines(str(error.strerror))}"]
            ) from error
        self._descriptors.append(program)
        return program

    def attach(self, program: int, raw_tracepoint: str | None = None) -> None:
        """Attach a loaded program to a raw tracepoint, or to its own if it is a typed one. Raises KernelUnavailable."""
        try:
            self._links.append(attach_tracepoint(program, raw_tracepoint))
        except OSError as error:
            raise KernelUnavailable([f"the program cannot be attached to its tracepoint: {error}"]) from error

    def detach(self) -> None:
        for descriptor in self._links:
            os.close(descriptor)
        self._links.clear()

    def map_fd(self, name: str) -> int:
        return int(self._bpf[name.encode()].map_fd)

    def open_ring_buffer(self, name: str, on_record: Callable[[bytes], bool]) -> Callable[[], None]:
        """A function that hands the records that are there to `on_record`, as long as that says to go on."""

        def callback(_context: object, data: int, size: int) -> int:
            # libbpf stops at a negative value, and would go on for ever while records come as fast as they are read.
            return 0 if on_record(ctypes.string_at(data, size)) else -1

        self._bpf[name.encode()].open_ring_buffer(callback)
        consume: Callable[[], None] = self._bpf.ring_buffer_consume
        return consume

    def close(self) -> None:
        self.detach()
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()
        self._bpf.cleanup()


class _quiet_stderr:
    """clang and the verifier write to descriptor 2: keep it for the error message instead."""

    def __enter__(self) -> _quiet_stderr:
        self._saved = os.dup(2)
        self._file = os.memfd_create("spandial-bcc")
        os.dup2(self._file, 2)
        self.text = ""
        return self

    def __exit__(self, *_: object) -> None:
        os.dup2(self._saved, 2)
        os.close(self._saved)
        self.text = os.pread(self._file, 1 << 20, 0).decode(errors="replace").strip()
        os.close(self._file)


def _reason(error: Exception, said: _quiet_stderr) -> str:
    return _last_lines(said.text or str(error))


def _last_lines(text: str) -> str:
    return " ".join(line.strip() for line in text.splitlines()[-3:])
