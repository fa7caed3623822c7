"""The programs that read and write of OpenSSL run into: the clear text of connections that sockets see encrypted."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

from spandial_agent.errors import KernelUnavailable
from spandial_agent.kernel.cache import CompileCache
from spandial_agent.kernel.compiler import Build
from spandial_agent.kernel.libbpf import ProgramInfo, Uprobe, program_info
from spandial_agent.kernel.links import Links
from spandial_agent.kernel.loader import Module
from spandial_agent.kernel.uprobes import attach_uprobe, attach_uprobes, takes_many

__all__ = ["FUNCTIONS", "REQUIRED", "TlsCapture", "ends_confined_processes"]

_BEGIN = {
    "SSL_read": "on_tls_read",
    "SSL_read_ex": "on_tls_read_ex",
    "SSL_write": "on_tls_write",
    "SSL_write_ex": "on_tls_write_ex",
}
_END = ("SSL_free", "SSL_clear")
REQUIRED = ("SSL_read", "SSL_write")
FUNCTIONS = (*_BEGIN, *_END)


def ends_confined_processes(release: str) -> bool:
    """Whether probes on a function's return make a system call that seccomp filters do not know, and end processes for.

    So it is from Linux 6.11 ("uprobe: Add uretprobe syscall to speed up return probe") until 6.14 ("seccomp:
    passthrough uretprobe systemcall without filtering"). Those in between that were mended cannot be told.
    """
    version = re.match(r"(\d+)\.(\d+)", release)
    return version is not None and (6, 11) <= (int(version[1]), int(version[2])) < (6, 14)


class TlsCapture:
    """The loaded programs, attached to nothing yet. To make one takes a compiler some seconds, once.

    Args:
        defines: macros of `capture.c`.
        callbacks: the functions that its programs hand to bpf_loop.
        maps: descriptors of the rate table and of the maps of the capture for sockets, which counts and decides for
            both.
        cache: where compiled sources are kept.

    Raises KernelUnavailable.
    """

    def __init__(
        self,
        defines: Mapping[str, int],
        callbacks: tuple[str, ...],
        maps: Mapping[str, int],
        cache: CompileCache | None = None,
    ) -> None:
        if ends_confined_processes(os.uname().release):
            raise KernelUnavailable(
                ["on Linux 6.11 to 6.13, probes in a library may end processes confined by seccomp."]
            )
        build = Build("capture.c", {**defines, "SPANDIAL_RING_PAGES": 1, "SPANDIAL_TLS": 1}, ("rates",))
        module = Module(build, maps, cache=cache)

        def load(program: str, uprobe: Uprobe) -> int:
            return module.load(program, callbacks=callbacks, uprobe=uprobe)

        try:
            self._many = takes_many(load("on_tls_end", "many"))
            uprobe: Uprobe = "many" if self._many else "one"
            loaded = {program: load(program, uprobe) for program in (*_BEGIN.values(), "on_tls_return", "on_tls_end")}
            self._programs = {program: os.dup(descriptor) for program, descriptor in loaded.items()}
        finally:
            # A program keeps the maps that it uses.
            module.close()
        self._links = Links()

    @property
    def programs(self) -> dict[str, ProgramInfo]:
        """What the kernel knows of the programs in use."""
        return {name: program_info(descriptor) for name, descriptor in self._programs.items()}

    def attach(self, path: str, offsets: Mapping[str, int]) -> list[int]:
        """Follow the connections of all targets that map this file; what `detach` takes.

        Args:
            path: a shared library, or an executable with OpenSSL in it.
            offsets: where in the file those of FUNCTIONS begin that it has.

        Raises OSError.
        """
        links: list[int] = []
        begins = [function for function in _BEGIN if function in offsets]
        try:
            # Ends first: no call is ever seen to begin whose end, or whose connection's end, is not.
            self._attach(links, "on_tls_end", path, [offsets[name] for name in _END if name in offsets])
            self._attach(links, "on_tls_return", path, [offsets[name] for name in begins], at_return=True)
            for name in begins:
                self._attach(links, _BEGIN[name], path, [offsets[name]])
        except OSError:
            self.detach(links)
            raise
        return links

    def _attach(
        self, links: list[int], program: str, path: str, offsets: Sequence[int], *, at_return: bool = False
    ) -> None:
        descriptor = self._programs[program]
        if self._many and offsets:
            links.append(self._links.hold(attach_uprobes(descriptor, path, offsets, at_return=at_return)))
        elif not self._many:
            for offset in offsets:
                links.append(self._links.hold(attach_uprobe(descriptor, path, offset, at_return=at_return)))

    def detach(self, links: Sequence[int]) -> None:
        """The kernel takes the probes away within a moment."""
        self._links.end(*links)

    def close(self) -> None:
        """Detach from everything."""
        self._links.close()
        for descriptor in self._programs.values():
            os.close(descriptor)
        self._programs.clear()
