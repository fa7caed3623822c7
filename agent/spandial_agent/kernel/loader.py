"""Load and attach BPF programs that were compiled, and make their maps."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

from spandial_agent.errors import KernelUnavailable
from spandial_agent.kernel.cache import CompileCache
from spandial_agent.kernel.compiled import MapDefinition
from spandial_agent.kernel.compiler import Build, last_lines
from spandial_agent.kernel.libbpf import Uprobe, attach_tracepoint, load_program
from spandial_agent.kernel.linker import link
from spandial_agent.kernel.maps import MAPS_OF_MAPS, RingBuffer, create_map, create_map_of_maps

__all__ = ["Module"]

_ONE_OF = "one_of_"


class Module:
    """The programs of one BPF source file, and its maps.

    Args:
        build: the source, and how it is compiled.
        maps: descriptors, by name, of maps that the programs use instead of ones of the module's own: those that
            `build.shared` names, and others as wanted. They stay the caller's.
        cache: where compiled sources are kept; without one it is compiled.

    Raises KernelUnavailable.
    """

    def __init__(
        self, build: Build, maps: Mapping[str, int] | None = None, *, cache: CompileCache | None = None
    ) -> None:
        compiled = (cache or CompileCache(None)).compiled(build)
        self._functions = compiled.functions
        self._maps: dict[str, int] = {}
        self._others = dict(maps or {})
        self._programs: list[int] = []
        self._links: list[int] = []
        self._readers: list[RingBuffer] = []
        try:
            self._make(compiled.maps)
        except OSError as error:
            self.close()
            raise KernelUnavailable([f"the kernel refuses the maps of {build.source}: {error}."]) from error

    def _make(self, definitions: Mapping[str, MapDefinition]) -> None:
        """Those that are nobody else's. The maps that an array of maps holds are as `one_of_` and its name says."""
        for name, definition in definitions.items():
            if name in self._others or name.startswith(_ONE_OF):
                continue
            if definition.kind in MAPS_OF_MAPS:
                self._maps[name] = create_map_of_maps(name, definition, definitions[_ONE_OF + name])
            else:
                self._maps[name] = create_map(name, definition)

    def load(
        self,
        function: str,
        *,
        callbacks: Sequence[str] = (),
        typed_tracepoint: str | None = None,
        uprobe: Uprobe | None = None,
    ) -> int:
        """Load a program; its descriptor, which the module closes.

        Args:
            function: a raw tracepoint program.
            callbacks: the functions that it hands to bpf_loop by number, from 1 on.
            typed_tracepoint: the tracepoint, where the program's arguments are to have their types.
            uprobe: it is for uprobes instead, for one or for many each time that it is attached.

        Raises KernelUnavailable with the verifier's last words.
        """
        numbered = {number: self._code(name) for number, name in enumerate(callbacks, 1)}
        code, functions = link(self._code(function), numbered)
        try:
            program = load_program(function, code, functions, typed_tracepoint, uprobe)
        except OSError as error:
            raise KernelUnavailable(
                [f"the kernel refuses the program {function}: {last_lines(str(error.strerror))}"]
            ) from error
        self._programs.append(program)
        return program

    def _code(self, function: str) -> bytes:
        return self._functions[function].relocated({**self._maps, **self._others})

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
        """The descriptor of a map of the module's own, which the module closes."""
        return self._maps[name]

    def open_ring_buffer(self, name: str, on_record: Callable[[bytes], bool]) -> Callable[[], None]:
        """A function that hands the records that are there to `on_record`, as long as that says to go on. It may be
        called until the module is closed."""
        reader = RingBuffer(self._maps[name], on_record)
        self._readers.append(reader)
        return reader.consume

    def close(self) -> None:
        self.detach()
        for reader in self._readers:
            reader.close()
        for descriptor in (*self._programs, *self._maps.values()):
            os.close(descriptor)
        self._readers.clear()
        self._programs.clear()
        self._maps.clear()
