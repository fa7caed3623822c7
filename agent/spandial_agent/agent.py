"""The agent's life: what must come first, then its parts.

Whoever restarts an agent waits for the kernel, which verifies the programs for most of a second. So what this module
imports is little, and the parts (`parts.py`) are imported while the kernel works.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal

import structlog

from spandial_agent import kernel_side
from spandial_agent.errors import SpandialError
from spandial_agent.lock import only_agent
from spandial_agent.log import Log
from spandial_agent.serving.certificate import ServerCertificate
from spandial_agent.settings import Settings, misspelt

__all__ = ["run_agent"]

_log = structlog.get_logger("spandial.agent")


async def run_agent(settings: Settings, log: Log) -> None:
    """Run until SIGTERM or SIGINT. Raises SpandialError where it cannot start."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    for sentence in misspelt(os.environ):
        _log.warning("a variable is not known", reason=sentence)
    with contextlib.ExitStack() as stack:
        os.umask(0o077)  # what others need is opened to them by name
        _raise_descriptor_limit()
        certificate = _certificate(settings)
        renew_lock = stack.enter_context(only_agent(settings.run_dir, settings.state_dir))
        kernel_made = stack.enter_context(kernel_side.making(settings))
        from spandial_agent.parts import run_parts  # not before: the kernel is at work from here on

        await run_parts(settings, log, stop, stack, certificate, renew_lock, kernel_made)
    _log.info("stopped")


def _certificate(settings: Settings) -> ServerCertificate | None:
    """Raises SpandialError."""
    if settings.tls_cert is not None:
        return ServerCertificate(settings.tls_cert, settings.tls_key, settings.tls_client_ca, _log.warning)
    if settings.tls_key is not None or settings.tls_client_ca is not None:
        raise SpandialError("SPANDIAL_TLS_KEY and SPANDIAL_TLS_CLIENT_CA need SPANDIAL_TLS_CERT, too")
    return None


def _raise_descriptor_limit() -> None:
    """A hooked process takes three descriptors: connection, counter page, pidfd."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
