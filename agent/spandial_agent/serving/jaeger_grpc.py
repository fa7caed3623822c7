"""Jaeger's remote sampling over gRPC: jaeger.api_v2.SamplingManager/GetSamplingStrategy.

The messages are those of jaeger-idl, proto/api_v2/sampling.proto, described here and compiled when the server starts.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

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
from spandial_api.auth import Refusal
from spandial_api.jaeger import Strategy
from spandial_api.node import Connection

__all__ = ["SERVICE", "messages", "serving", "tls"]

_Answer = Callable[[str, "Connection | None"], Awaitable[Strategy]]

SERVICE = "jaeger.api_v2.SamplingManager"

_PACKAGE = "jaeger.api_v2"
_MESSAGE_MAX = 16 << 10  # bytes of a question
_CALLS = 256  # at a time
_GRACE_S = 1.0
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


def _connection(peer: str, to_port: int) -> Connection | None:
    """From gRPC's name of a peer, such as `ipv4:127.0.0.1:4711` or `ipv6:%5B::1%5D:4711`."""
    family, _, rest = unquote(peer).partition(":")
    address, _, port = rest.rpartition(":")
    if family not in ("ipv4", "ipv6") or not port.isdigit():
        return None
    return Connection(address.strip("[]"), int(port), to_port)


def tls(certificate: Path, key: Path | None = None, client_ca: Path | None = None) -> grpc.ServerCredentials:
    """Credentials from PEM files, which are read anew for each connection; unreadable, those from before hold.

    Args:
        key: None: it is in the certificate's file.
        client_ca: clients must show a certificate that leads to one of these.

    Raises:
        SpandialError: they cannot be read.
    """

    def read() -> grpc.ServerCertificateConfiguration:
        pair = ((key or certificate).read_bytes(), certificate.read_bytes())
        return grpc.ssl_server_certificate_configuration([pair], client_ca.read_bytes() if client_ca else None)

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        with suppress(OSError):
            return read()
        return None

    try:
        # None is for no change, which the stubs do not know.
        return grpc.dynamic_ssl_server_credentials(read(), renewed, client_ca is not None)  # type: ignore[arg-type]
    except OSError as error:
        raise SpandialError(f"cannot read {error.filename} ({error.strerror}), for Jaeger's gRPC") from error


@asynccontextmanager
async def serving(
    host: str,
    port: int,
    strategy: _Answer,
    check_reader: Callable[[str, str], None] = lambda authorization, peer: None,
    credentials: grpc.ServerCredentials | None = None,
) -> AsyncIterator[int]:
    """Serve until left; the port.

    Args:
        port: 0 for any that is free.
        strategy: the answer for a service and a connection.
        check_reader: given the metadata `authorization` and the peer, raises Refusal for who may not ask.
        credentials: for TLS.

    Raises:
        SpandialError: it cannot listen there.
    """
    parameters, response = messages()

    async def get_sampling_strategy(asked: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Message:
        connection = _connection(context.peer(), bound)
        try:
            check_reader(_authorization(context), connection.address if connection else context.peer())
        except Refusal as refusal:
            await context.abort(_CODES[refusal.status_code], refusal.detail)
        service = asked.serviceName
        if not 0 < len(service) <= LABEL_MAX:
            allowed = f"serviceName must have 1 to {LABEL_MAX} characters; received {service[:40]!r}"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, allowed)
        return ParseDict((await strategy(service, connection)).message, response())

    options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", _MESSAGE_MAX)]
    server = grpc.aio.server(options=options, maximum_concurrent_rpcs=_CALLS)
    method = grpc.unary_unary_rpc_method_handler(
        get_sampling_strategy,
        request_deserializer=parameters.FromString,
        response_serializer=response.SerializeToString,
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"GetSamplingStrategy": method}),))
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        bound = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    except RuntimeError as error:
        raise SpandialError(
            f"cannot listen on {address} for Jaeger's gRPC: is another program there? "
            "SPANDIAL_JAEGER_GRPC_PORT sets another port"
        ) from error
    await server.start()
    structlog.get_logger("spandial.jaeger").info("serving Jaeger's remote sampling over gRPC", port=bound)
    try:
        yield bound
    finally:
        await server.stop(_GRACE_S)
