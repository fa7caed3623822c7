"""A gRPC server without protobuf. On standard input any line asks it what it served; it ends with its input.

    python -m tests.e2e.programs.grpc_server THREADS [unix:PATH]

`/echo.Echo/Unary` answers with its request; `/echo.Echo/ServerStream` gives it back as often as its own text says;
`/echo.Echo/ClientStream` says how many messages came. Every method answers with the request's metadata `echo-*` as
initial metadata, and with the status whose number the metadata `status` asks for. Other methods are UNIMPLEMENTED.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc  # type: ignore[import-untyped]

_CODES = {code.value[0]: code for code in grpc.StatusCode}


class Echo(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Counts calls as they come: gRPC calls `service` once for each, from one thread."""

    def __init__(self) -> None:
        self.operations: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()

    def service(self, details: Any) -> Any:
        self.operations[details.method] += 1
        status = next((int(value) for name, value in details.invocation_metadata if name == "status"), 0)
        make, behaviour = {
            "/echo.Echo/Unary": (grpc.unary_unary_rpc_method_handler, _unary),
            "/echo.Echo/ServerStream": (grpc.unary_stream_rpc_method_handler, _server_stream),
            "/echo.Echo/ClientStream": (grpc.stream_unary_rpc_method_handler, _client_stream),
        }.get(details.method, (None, None))
        if make is None or status:
            self.errors[_CODES[status].name if make else "UNIMPLEMENTED"] += 1
        return make(behaviour) if make else None


def _begin(context: Any) -> None:
    """Echo the metadata; end the call here if it asks for a status."""
    metadata = context.invocation_metadata()
    if echoed := [pair for pair in metadata if pair[0].startswith("echo-")]:
        context.send_initial_metadata(echoed)
    status = next((int(value) for name, value in metadata if name == "status"), 0)
    if status:
        context.abort(_CODES[status], "as asked")


def _unary(request: bytes, context: Any) -> bytes:
    _begin(context)
    return request


def _server_stream(request: bytes, context: Any) -> Iterator[bytes]:
    _begin(context)
    for _ in range(int(request)):
        yield request


def _client_stream(requests: Iterable[bytes], context: Any) -> bytes:
    _begin(context)
    return b"%d" % sum(1 for _ in requests)


def main() -> None:
    echo = Echo()
    pool = ThreadPoolExecutor(int(sys.argv[1]))
    server = grpc.server(pool, handlers=[echo], options=[("grpc.so_reuseport", 0)])
    port = server.add_insecure_port(sys.argv[2] if sys.argv[2:] else "127.0.0.1:0")
    server.start()
    print(json.dumps({"port": port}), flush=True)
    for _ in sys.stdin:
        print(json.dumps({"operations": echo.operations, "errors": echo.errors}), flush=True)
    server.stop(None)


if __name__ == "__main__":
    main()
