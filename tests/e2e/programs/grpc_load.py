"""Load on `grpc_server` with grpcio. A kind is a method's path; an error's code is the name of the gRPC status."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from typing import Any

import grpc  # type: ignore[import-untyped]

from tests.e2e.programs.operations import Recorder, serve, spread

# A channel of its own for each, also to the same server, and no call sent twice.
_OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
_Metadata = list[tuple[str, str]]


def _code(error: Exception) -> str | None:
    if not isinstance(error, grpc.RpcError):
        return None
    code = error.code()
    # A connection that fails is no answer of the server.
    return None if code is grpc.StatusCode.UNAVAILABLE else str(code.name)


def _traceparent(rng: random.Random) -> str:
    """Random ids and a random sampled flag (W3C Trace Context 3.2)."""
    return f"00-{rng.getrandbits(128) | 1:032x}-{rng.getrandbits(64) | 1:016x}-{rng.getrandbits(1):02x}"


def calls(
    log: Recorder,
    address: str,
    count: int,
    connections: int = 1,
    concurrency: int = 1,
    method: str = "Unary",
    messages: int = 10,
    status: int = 0,
    seed: int | None = None,
) -> None:
    """Calls of a method of echo.Echo.

    Args:
        connections, concurrency: channels, and threads that share them out evenly.
        messages: how many each stream has.
        status: what the server is asked to answer with.
        seed: with one, each call has a traceparent, which `each` tells.
    """
    path = f"/echo.Echo/{method}"
    rng = random.Random(seed)
    traceparents = [_traceparent(rng) if seed is not None else "" for _ in range(count)]

    def call(channel: grpc.Channel, traceparent: str) -> None:
        metadata: _Metadata = [("traceparent", traceparent)] if traceparent else []
        if status:
            metadata.append(("status", str(status)))
        if method == "ServerStream":
            answers: Iterator[bytes] = channel.unary_stream(path)(b"%d" % messages, metadata=metadata, timeout=120)
            assert sum(1 for _ in answers) == messages
        elif method == "ClientStream":
            sent = iter([b"message"] * messages)
            assert channel.stream_unary(path)(sent, metadata=metadata, timeout=120) == b"%d" % messages
        else:
            metadata.append(("echo-id", traceparent or "none"))
            answer, ended = channel.unary_unary(path).with_call(b"message", metadata=metadata, timeout=120)
            assert answer == b"message"
            assert ("echo-id", traceparent or "none") in [tuple(pair) for pair in ended.initial_metadata()]

    def work(channel: grpc.Channel, share: int) -> None:
        for _ in range(share):
            traceparent = traceparents.pop()
            with log.operation(path, traceparent):
                call(channel, traceparent)

    with ExitStack() as stack:
        channels: list[Any] = []
        for _ in range(connections):
            channels.append(stack.enter_context(grpc.insecure_channel(address, _OPTIONS)))
            grpc.channel_ready_future(channels[-1]).result(10)
        given = iter(channels * (concurrency // connections + 1))
        spread(count, concurrency, lambda: nullcontext(next(given)), work)


if __name__ == "__main__":
    serve(_code, {"calls": calls})
