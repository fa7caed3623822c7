"""The least ASGI application that does what a PUT cannot do without: it waits for the disk in a thread."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn

from bench.hello import app as hello

__all__ = ["StoringApp"]

_PAGE = b"x" * 4096


class StoringApp:
    """Appends a page to a file for each request."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    async def __call__(
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[dict[str, Any]]],
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        await asyncio.to_thread(self._store)
        await hello(scope, receive, send)

    def _store(self) -> None:
        os.write(self._file, _PAGE)
        os.fsync(self._file)


if __name__ == "__main__":
    uvicorn.run(StoringApp(sys.argv[1]), uds=sys.argv[2], log_level="error", lifespan="off")  # type: ignore[arg-type]
