"""The HTTP interface, and Jaeger's over gRPC, around what is obeyed already.

It takes longer to import than the rest of the agent: FastAPI, and the models of all answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from importlib.metadata import version

from spandial_agent.serving.binding import is_loopback
from spandial_agent.serving.certificate import ServerCertificate
from spandial_agent.serving.listeners import serve
from spandial_agent.settings import Settings
from spandial_api.app import build_app
from spandial_api.auth import Access
from spandial_api.control import Control
from spandial_api.guard import Guard
from spandial_api.jaeger import Strategy
from spandial_api.node import Connection, Node
from spandial_api.remote import RemoteSampling
from spandial_api.switch import Switch
from spandial_api.token_file import TokenFile

__all__ = ["serve_interface"]


async def serve_interface(
    settings: Settings,
    control: Control,
    node: Node,
    guard: Guard,
    switch: Switch,
    token_file: TokenFile,
    *,
    tcp: socket.socket,
    unix: socket.socket,
    certificate: ServerCertificate | None,
    stop: asyncio.Event,
    end_streams: Callable[[], None],
    renewed: Callable[[], socket.socket | None],
) -> None:
    """Serve until told to stop, as `listeners.serve`. Raises SpandialError where Jaeger's port cannot be served."""
    free_to_read = {"auto": is_loopback(tcp), "on": True, "off": False}[settings.read_without_token]
    access = Access(token_file, read_without_token=free_to_read, writes_per_second=settings.writes_per_second)
    remote = RemoteSampling(control, node, settings.default_rate, settings.xray_interval_seconds)
    app = build_app(
        control,
        node,
        access=access,
        version=version("spandial"),
        max_rate_without_ttl=settings.max_rate_without_ttl,
        guard=guard,
        remote=remote,
        turned=switch,
        host_names=settings.own_names,
    )
    async with _jaeger_grpc(settings, tcp.getsockname()[0], remote, access, certificate):
        context = certificate.context if certificate else None
        await serve(app, tcp, unix, stop, end_streams, context, renewed, access.refused)


def _jaeger_grpc(
    settings: Settings, address: str, remote: RemoteSampling, access: Access, certificate: ServerCertificate | None
) -> AbstractAsyncContextManager[object]:
    """Jaeger's remote sampling over gRPC, where a port for it is set. Raises SpandialError."""
    if settings.jaeger_grpc_port is None:
        return contextlib.nullcontext()
    from spandial_agent.serving import jaeger_grpc  # what it imports takes memory

    async def strategy(service: str, connection: Connection, uid: int | None) -> Strategy:
        return await remote.strategy(service, connection=connection, uid=uid)

    return jaeger_grpc.serving(
        address,
        settings.jaeger_grpc_port,
        strategy,
        access.check_reader,
        certificate.context_for("h2") if certificate is not None else None,
        settings.own_names,
        access.refused,
    )
