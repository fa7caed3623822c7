"""Jaeger's remote sampling over gRPC: jaeger.api_v2.SamplingManager/GetSamplingStrategy.

The messages are those of jaeger-idl, proto/api_v2/sampling.proto, described here and compiled when the server starts.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import structlog
from google.protobuf.descriptor_pb2 import FieldDescriptorProto as Field
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from spandial.labels import LABEL_MAX
from spandial_agent.errors import SpandialError
from spandial_agent.serving.binding import bind_tcp
from spandial_agent.serving.connections import Connections
from spandial_agent.serving.http2_proxy import Http2Proxy
from spandial_api.auth import Refusal
from spandial_api.jaeger import Strategy
from spandial_api.node import Connection

__all__ = ["SERVICE", "Answer", "messages", "serving"]

Answer = Callable[[str, Connection, "int | None"], Awaitable[Strategy]]

SERVICE = "jaeger.api_v2.SamplingManager"

_PACKAGE = "jaeger.api_v2"
_MESSAGE_MAX = 16 << 10  # bytes of a question
_METADATA_MAX = 8 << 10  # bytes
_CALLS = 8  # of a connection at a time
_OVER_TCP = 256, 32  # connections, and those of a peer
_OVER_TLS = 128, 32  # each has a buffer of 256 KiB
_IDLE_MS = 300_000  # clients ask every minute
_GRACE_S = 1.0
_OPTIONS = [
    ("grpc.max_concurrent_streams", _CALLS),
    ("grpc.max_receive_message_length", _MESSAGE_MAX),
    ("grpc.max_metadata_size", _METADATA_MAX),
    ("grpc.absolute_max_metadata_size", _METADATA_MAX),
    ("grpc.max_connection_idle_ms", _IDLE_MS),
    ("grpc.http2.bdp_probe", 0),  # else windows grow with what a client sends
]
_CODES = {
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
}

_DOUBLE, _INT32, _STRING = Field.TYPE_DOUBLE, Field.TYPE_INT32, Field.TYPE_STRING
# Message: fields, each with its number and its type, which is a message's name for a message.
_FIELDS: dict[str, dict[str, tuple[int, int | str]]] = {
    "ProbabilisticSamplingStrategy": {"samplingRate": (1, _DOUBLE)},
    "RateLimitingSamplingStrategy": {"maxTracesPerSecond": (1, _INT32)},
    "OperationSamplingStrategy": {
        "operation": (1, _STRING),
        "probabilisticSampling": (2, "ProbabilisticSamplingStrategy"),
    },
    "PerOperationSamplingStrategies": {
        "defaultSamplingProbability": (1, _DOUBLE),
        "defaultLowerBoundTracesPerSecond": (2, _DOUBLE),
        "perOperationStrategies": (3, "OperationSamplingStrategy"),
        "defaultUpperBoundTracesPerSecond": (4, _DOUBLE),
    },
    "SamplingStrategyResponse": {
        "strategyType": (1, "SamplingStrategyType"),
        "probabilisticSampling": (2, "ProbabilisticSamplingStrategy"),
        "rateLimitingSampling": (3, "RateLimitingSamplingStrategy"),
        "operationSampling": (4, "PerOperationSamplingStrategies"),
    },
    "SamplingStrategyParameters": {"serviceName": (1, _STRING)},
}
_ENUM = ("SamplingStrategyType", ("PROBABILISTIC", "RATE_LIMITING"))
_REPEATED = "perOperationStrategies"


def messages() -> tuple[type[Message], type[Message]]:
    """The classes of question and answer."""
    file = FileDescriptorProto(name="spandial/sampling.proto", package=_PACKAGE, syntax="proto3")
    enum = file.enum_type.add(name=_ENUM[0])
    for number, name in enumerate(_ENUM[1]):
        enum.value.add(name=name, number=number)
    for message, fields in _FIELDS.items():
        described = file.message_type.add(name=message)
        for name, (number, kind) in fields.items():
            field = described.field.add(name=name, json_name=name, number=number)
            field.label = Field.LABEL_REPEATED if name == _REPEATED else Field.LABEL_OPTIONAL
            if isinstance(kind, str):
                field.type = Field.TYPE_ENUM if kind == _ENUM[0] else Field.TYPE_MESSAGE
                field.type_name = f".{_PACKAGE}.{kind}"
            else:
                field.type = kind  # type: ignore[assignment]
    pool = DescriptorPool()
    pool.Add(file)
    parameters, response = (
        GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
        for name in ("SamplingStrategyParameters", "SamplingStrategyResponse")
    )
    return parameters, response


def _authorization(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    values = (value for key, value in context.invocation_metadata() or () if key == "authorization")
    value = next(values, "")
    return value if isinstance(value, str) else ""


@asynccontextmanager
async def serving(
    host: str,
    port: int,
    strategy: Answer,
    folder: Path,
    check_reader: Callable[[str, str], None] = lambda authorization, peer: None,
    tls: ssl.SSLContext | None = None,
    host_names: Collection[str] = (),
    refused: Counter[str] | None = None,
) -> AsyncIterator[int]:
    """Serve until left; the port.

    Args:
        port: 0 for any that is free.
        strategy: the answer for a service, a connection and its user, where he is known.
        folder: where the Unix socket is made by which gRPC's server is asked; nobody else may write there.
        check_reader: given the metadata `authorization` and the peer's address, raises Refusal for who may not ask.
        tls: for TLS; it speaks `h2`.
        host_names: by which it is asked beside addresses and `localhost`.
        refused: where what is refused is counted, by reason.

    Raises:
        SpandialError: it cannot listen there.
    """
    bounds = _OVER_TCP if tls is None else _OVER_TLS
    connections = Connections(*bounds, refused=refused)
    proxy = Http2Proxy(folder / "jaeger.sock", connections, host_names)
    setting = "SPANDIAL_JAEGER_GRPC_PORT"
    with bind_tcp(host, port, tls=tls is not None, purpose=" for Jaeger's gRPC", setting=setting) as listener:
        servers: list[grpc.aio.Server] = []

        async def start() -> None:
            servers.append(_server(proxy, strategy, check_reader, bounds[0]))
            await servers[-1].start()

        await start()
        proxy.renew = start
        try:
            async with proxy.running(listener, tls):
                bound: int = listener.getsockname()[1]
                structlog.get_logger("spandial.jaeger").info("serving Jaeger's remote sampling over gRPC", port=bound)
                try:
                    yield bound
                finally:  # tells all, while what it says is passed on
                    await asyncio.gather(*(server.stop(_GRACE_S) for server in servers))
        finally:
            proxy.path.unlink(missing_ok=True)


def _server(
    proxy: Http2Proxy, strategy: Answer, check_reader: Callable[[str, str], None], connections: int
) -> grpc.aio.Server:
    parameters, response = messages()

    async def get_sampling_strategy(asked: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Message:
        made = proxy.by(context.peer().partition(":")[2])
        if made is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the connection has ended")
            raise AssertionError  # abort has raised
        if made.refusal is not None:
            reason, sentence = made.refusal
            proxy.connections.refused[reason] += 1
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, sentence)
        made.answering += 1
        try:
            check_reader(_authorization(context), made.connection.address)
            service = asked.serviceName
            if not 0 < len(service) <= LABEL_MAX:
                allowed = f"serviceName must have 1 to {LABEL_MAX} characters; received {service[:40]!r}"
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, allowed)
            return ParseDict((await strategy(service, made.connection, made.peer.uid)).message, response())
        except Refusal as refusal:
            await context.abort(_CODES[refusal.status_code], refusal.detail)
            raise
        finally:
            made.answered()

    # No peer can take all of the calls: each has so many connections, and each connection so many calls.
    server = grpc.aio.server(options=_OPTIONS, maximum_concurrent_rpcs=connections * _CALLS)
    method = grpc.unary_unary_rpc_method_handler(
        get_sampling_strategy,
        request_deserializer=parameters.FromString,
        response_serializer=response.SerializeToString,
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"GetSamplingStrategy": method}),))
    proxy.path.unlink(missing_ok=True)
    mask = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix:{proxy.path}")
    except RuntimeError as error:
        raise SpandialError(f"cannot listen on {proxy.path}, for Jaeger's gRPC: {error}") from error
    finally:
        os.umask(mask)
    return server
