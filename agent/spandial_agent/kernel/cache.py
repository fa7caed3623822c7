"""What was compiled is kept: the next start of the agent loads it, without bcc and without clang.

The kernel runs what these files say, with root's rights. So they and their folder belong to the agent's user, nobody
else may write them, and a file counts only if it is whole and was compiled from the same sources, for the same kernel,
by the same bcc and headers. Where there is no bcc any more, what it compiled still serves.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import structlog

from spandial_agent.errors import KernelUnavailable
from spandial_agent.kernel.compiled import Compiled, Keeping, decode, encode
from spandial_agent.kernel.compiler import Build, compile_build, toolchain
from spandial_api.folders import make_folder, open_file, open_folder

__all__ = ["CompileCache"]

_log = structlog.get_logger("spandial.kernel")


class CompileCache:
    """A folder of compiled sources, one file for each variant.

    Args:
        folder: made if it is not there; None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._held: dict[str, Compiled] = {}  # what was read to know that it is held, and will be asked for

    def compiled(self, build: Build) -> Compiled:
        """What the source becomes: as it is kept, or compiled now and kept. Raises KernelUnavailable.

        Two agents may do this at the same time: each uses what it read or compiled itself.
        """
        if build.name in self._held:
            return self._held.pop(build.name)
        try:
            key, tools = build.key(), toolchain()
        except OSError as error:
            raise KernelUnavailable([f"{build.source} cannot be compiled: {error}."]) from error
        try:
            return self._read(build, key, tools)
        except FileNotFoundError:
            reason = "it was not compiled before"
        except (OSError, ValueError) as error:
            reason = f"what was compiled before cannot be used: {error}"
        _log.info("compiling a BPF source", source=str(build.source), reason=reason)
        compiled = compile_build(build)
        if self._folder is not None and tools is not None:
            try:
                self._write(build, encode(Keeping(key, tools, compiled)))
            except OSError as error:
                _log.warning("a compiled BPF source is not kept", folder=str(self._folder), reason=str(error))
        return compiled

    def holds(self, build: Build) -> bool:
        """Whether nothing would be compiled now."""
        try:
            self._held[build.name] = self._read(build, build.key(), toolchain())
        except (OSError, ValueError):
            return False
        return True

    def _read(self, build: Build, key: str, tools: str | None) -> Compiled:
        """Raises FileNotFoundError, other OSErrors, and ValueError for a file that says something else."""
        if self._folder is None:
            raise FileNotFoundError("nothing is kept")
        folder = open_folder(self._folder)
        try:
            file = open_file(_name(build), os.O_RDONLY, folder, self._folder / _name(build))
        finally:
            os.close(folder)
        with open(file, "rb") as opened:
            kept = decode(opened.read())
        if kept.key != key:
            raise ValueError("it was of other sources, or for another kernel")
        if tools is not None and kept.toolchain != tools:
            raise ValueError("it was compiled by another bcc, or with other kernel headers")
        return kept.compiled

    def _write(self, build: Build, content: bytes) -> None:
        """Whole or not at all. Raises OSError."""
        assert self._folder is not None
        folder = make_folder(self._folder, 0o700)
        new = f".{_name(build)}.{secrets.token_hex(4)}"
        try:
            with open(
                os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder), "wb"
            ) as opened:
                opened.write(content)
            os.rename(new, _name(build), src_dir_fd=folder, dst_dir_fd=folder)
        except OSError:
            try:
                os.unlink(new, dir_fd=folder)
            except OSError:
                pass
            raise
        finally:
            os.close(folder)


def _name(build: Build) -> str:
    return f"{build.name}.json"
