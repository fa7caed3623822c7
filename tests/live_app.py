"""An application served by uvicorn in a thread of this process: what a client sees is real, and a test can look in."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from tests.agent_process import eventually

__all__ = ["free_port", "served"]


def free_port(host: str = "127.0.0.1") -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def served(app: ASGIApp, host: str = "127.0.0.1", port: int = 0, **options: Any) -> Iterator[str]:
    """The URL under which the application is served until the context ends.

    Args:
        options: uvicorn's.
    """
    config = uvicorn.Config(
        app,
        host=host,
        port=port or free_port(host),
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=1,
        **options,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        eventually(lambda: server.started, "uvicorn serves")
        name = f"[{host}]" if ":" in host else host
        yield f"{'https' if config.is_ssl else 'http'}://{name}:{config.port}"
    finally:
        server.should_exit = True
        thread.join(15)
