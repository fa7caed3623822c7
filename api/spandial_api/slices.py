"""Work that anybody may ask for and that takes a while: how much of the event loop's time it gets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext

__all__ = ["SLICE_S", "Slices"]

SLICE_S = 0.002  # afterwards the loop has as long for everything else


class Slices:
    """Long work is done by one after the other, in slices, and takes half of the loop's time at most: a change of the
    rules needs several rounds of the loop, and would wait for a slice of everybody's in each."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def turn(self, long: bool = True) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        """Work in here, and await what this gives now and then.

        Args:
            long: False for work that is less than a slice: it waits for nobody.
        """
        async with self._lock if long else nullcontext():
            began = time.monotonic()

            async def rest() -> None:
                nonlocal began
                worked = time.monotonic() - began
                if worked > SLICE_S:
                    await asyncio.sleep(worked)
                    began = time.monotonic()

            yield rest
            await rest()
