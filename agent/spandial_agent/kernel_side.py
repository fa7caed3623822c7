"""The kernel side of the agent: the table, and the capture where there can be one.

It is made in a thread: the kernel takes most of a second to verify the programs, and the agent imports and makes what
it can meanwhile.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from spandial_agent.capture.capture import Capture, is_compiled
from spandial_agent.errors import KernelUnavailable, SpandialError
from spandial_agent.kernel.cache import CompileCache
from spandial_agent.kernel.probe import missing_for_kernel
from spandial_agent.settings import Settings
from spandial_agent.table.frozen import FrozenTable
from spandial_agent.table.memfd import MemfdTable
from spandial_agent.table.rates import TableBackend

__all__ = ["KernelSide", "making"]


class KernelSide(NamedTuple):
    """
    Attributes:
        missing: what the host lacks for more, one sentence each.
    """

    backend: TableBackend
    capture: Capture | None
    missing: list[str]


@contextlib.contextmanager
def making(settings: Settings) -> Iterator[Callable[[], KernelSide]]:
    """Begin to make it; take it down at the end. Yields what waits until it is made, and raises SpandialError where it
    is required and cannot be."""
    loading = threading.Event()
    maker = ThreadPoolExecutor(1, thread_name_prefix="spandial-kernel")
    made = maker.submit(_make, settings, loading.set)
    maker.shutdown(wait=False)  # the thread ends with what it makes
    made.add_done_callback(lambda _: loading.set())
    try:
        loading.wait()  # one thread runs Python at a time: until the kernel is at work, that one
        yield made.result
    finally:
        if made.exception() is None:
            backend, capture, _ = made.result()
            if capture is not None:
                capture.close()
            backend.close()


def _make(settings: Settings, on_loading: Callable[[], None]) -> KernelSide:
    """Raises SpandialError."""
    if settings.table == "memfd":
        return KernelSide(MemfdTable(), None, ["the kernel side is off: SPANDIAL_TABLE=memfd."])
    cache = CompileCache(settings.compiled_dir)
    missing = missing_for_kernel(compiled=is_compiled(cache, settings.forced_path))
    backend: FrozenTable | None = None
    if not missing:
        try:
            backend = FrozenTable(cache)
            if settings.capture == "off":
                return KernelSide(backend, None, ["capture is off: SPANDIAL_CAPTURE=off."])
            rates, path = backend.map_descriptor, settings.forced_path
            return KernelSide(backend, Capture(rates, path, cache=cache, on_loading=on_loading), [])
        except KernelUnavailable as error:
            missing = error.missing
    if settings.require_kernel or (backend is None and settings.table == "bpf"):
        if backend is not None:
            backend.close()
        raise SpandialError("the kernel side is required, but " + " ".join(missing))
    return KernelSide(backend or MemfdTable(), None, missing)
