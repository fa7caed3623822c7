"""Jaeger's remote sampling over gRPC: jaeger.api_v2.SamplingManager/GetSamplingStrategy.

The messages are those of jaeger-idl, proto/api_v2/sampling.proto, described here and compiled when the server starts.
"""

from __future__ import annotations

import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from typing import Any

import structlog
from google.protobuf.descriptor_pb2 import FieldDescriptorProto as Field
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from spandial.labels import LABEL_MAX
from spandial_agent.serving.binding import bind_tcp
from spandial_agent.serving.connections import Connections
from spandial_agent.serving.grpc_unary import Code, Status, UnaryCalls
from spandial_agent.serving.http2 import Request
from spandial_agent.serving.http2_server import Http2Server
from spandial_api.auth import Refusal
from spandial_api.jaeger import Strategy
from spandial_api.node import Connection

__all__ = ["SERVICE", "Answer", "messages", "serving"]

Answer = Callable[[str, Connection, "int | None"], Awaitable[Strategy]]

SERVICE = "jaeger.api_v2.SamplingManager"

_PACKAGE = "jaeger.api_v2"
_OVER_TCP = 256, 32  # connections, and those of a peer
_OVER_TLS = 128, 32  # each has a buffer of 256 KiB
_CODES = {401: Code.UNAUTHENTICATED, 403: Code.PERMISSION_DENIED, 429: Code.RESOURCE_EXHAUSTED}

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


@asynccontextmanager
async def serving(
    host: str,
    port: int,
    strategy: Answer,
    check_reader: Callable[[str, str], None] = lambda authorization, peer: None,
    tls: ssl.SSLContext | None = None,
    host_names: Collection[str] = (),
    refused: Counter[str] | None = None,
) -> AsyncIterator[int]:
    """Serve until left; the port.

    Args:
        port: 0 for any that is free.
        strategy: the answer for a service, a connection and its user, where he is known.
        check_reader: given the metadata `authorization` and the peer's address, raises Refusal for who may not ask.
        tls: for TLS; it speaks `h2`.
        host_names: by which it is asked beside addresses and `localhost`.
        refused: where what is refused is counted, by reason.

    Raises:
        SpandialError: it cannot listen there.
    """
    parameters, response = messages()

    async def get_sampling_strategy(message: bytes, request: Request) -> bytes:
        try:
            check_reader(request.fields.get("authorization", ""), request.connection.address)
            asked: Any = parameters.FromString(message)
            service = asked.serviceName
            if not 0 < len(service) <= LABEL_MAX:
                allowed = f"serviceName must have 1 to {LABEL_MAX} characters; received {service[:40]!r}"
                raise Status(Code.INVALID_ARGUMENT, allowed)
            found = await strategy(service, request.connection, request.peer.uid)
            return ParseDict(found.message, response()).SerializeToString()
        except Refusal as refusal:
            raise Status(_CODES[refusal.status_code], refusal.detail) from refusal
        except DecodeError as error:
            raise Status(Code.INTERNAL, "the message is no SamplingStrategyParameters") from error

    connections = Connections(*(_OVER_TCP if tls is None else _OVER_TLS), refused=refused)
    methods = {f"/{SERVICE}/GetSamplingStrategy": get_sampling_strategy}
    server = Http2Server(UnaryCalls(methods, host_names, connections.refused).answer, connections)
    setting = "SPANDIAL_JAEGER_GRPC_PORT"
    with bind_tcp(host, port, tls=tls is not None, purpose=" for Jaeger's gRPC", setting=setting) as listener:
        async with server.running(listener, tls):
            bound: int = listener.getsockname()[1]
            structlog.get_logger("spandial.jaeger").info("serving Jaeger's remote sampling over gRPC", port=bound)
            yield bound
