"""One answer for all who ask at about the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from spandial_api.write_limit import RateLimit

__all__ = ["SharedAnswer"]

_Answer = TypeVar("_Answer")

_PER_SECOND = 5.0
_AT_ONCE = 10.0


class SharedAnswer(Generic[_Answer]):
    """An answer that is dear to make. It is made after the question, never before: nobody is told what was true
    earlier. Whoever asks until its making begins gets the same.

    Args:
        make: makes one; never called while another is being made.
        per_second: how many are made, after some that are made at once.
    """

    def __init__(
        self, make: Callable[[], Awaitable[_Answer]], per_second: float = _PER_SECOND, at_once: float = _AT_ONCE
    ) -> None:
        self._make = make
        self._pace = RateLimit(per_second, at_once)
        self._next: asyncio.Task[_Answer] | None = None
        self._making: asyncio.Task[_Answer] | None = None

    async def get(self) -> _Answer:
        """Raises what making it raises."""
        if self._next is None:
            self._next = asyncio.ensure_future(self._make_in_time(self._making))
        return await asyncio.shield(self._next)  # who goes away ends it for nobody else

    async def _make_in_time(self, before: asyncio.Task[_Answer] | None) -> _Answer:
        if before is not None:
            await asyncio.wait([before])
        loop = asyncio.get_running_loop()
        if wait := self._pace.take("", loop.time()):
            await asyncio.sleep(wait)
            self._pace.take("", loop.time())
        self._making, self._next = self._next, None
        return await self._make()
