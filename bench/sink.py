"""Where the spans go: OTLP over HTTP and gRPC, counted and thrown away.

`python -m bench.sink SERVICE` is a process of its own. It counts the spans of one service, for an agent finds others.
It is small and the benchmark's own, because receivers that keep spans are far slower than what is measured. It answers
as OTLP says, so that the agent's exporters work as they do against any collector; it takes a few percent of a core.
"""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc  # type: ignore[import-untyped]
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from bench.checkout import ROOT

__all__ = ["PROTOCOLS", "Sink"]

PROTOCOLS = ("http/protobuf", "grpc")
_ANSWER: bytes = ExportTraceServiceResponse().SerializeToString()


class Sink:
    """The process, as the benchmark sees it.

    Attributes:
        pid: of it.
        endpoints: for OTEL_EXPORTER_OTLP_ENDPOINT, by protocol.

    Args:
        service: whose spans it counts.
        core: where it runs.
    """

    def __init__(self, service: str, core: int) -> None:
        self._process = subprocess.Popen(
            ["taskset", "--cpu-list", str(core), sys.executable, "-m", "bench.sink", service],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        assert self._process.stdout is not None
        ports = json.loads(self._process.stdout.readline())
        self.endpoints = {protocol: f"http://127.0.0.1:{port}" for protocol, port in zip(PROTOCOLS, ports)}

    def spans(self) -> int:
        """How many came since it was started."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


class _Counter:
    def __init__(self, service: str) -> None:
        self.spans = 0
        self._service = service
        self._lock = threading.Lock()

    def take(self, message: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(message)
        for resource in request.resource_spans:
            names = [each.value.string_value for each in resource.resource.attributes if each.key == "service.name"]
            if names == [self._service]:
                with self._lock:
                    self.spans += sum(len(scope.spans) for scope in resource.scope_spans)


def _serve_http(counter: _Counter) -> int:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            counter.take(gzip.decompress(body) if self.headers["content-encoding"] == "gzip" else body)
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(_ANSWER)))
            self.end_headers()
            self.wfile.write(_ANSWER)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return int(server.server_address[1])


def _serve_grpc(counter: _Counter) -> tuple[grpc.Server, int]:
    def export(message: bytes, _: object) -> bytes:
        counter.take(message)
        return _ANSWER

    method = grpc.unary_unary_rpc_method_handler(export)
    service = "opentelemetry.proto.collector.trace.v1.TraceService"
    server = grpc.server(ThreadPoolExecutor(2), options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": method}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, port


def _main(service: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends with its input, and so with the benchmark
    counter = _Counter(service)
    server, port = _serve_grpc(counter)
    print(json.dumps([_serve_http(counter), port]), flush=True)
    for _ in sys.stdin:
        print(counter.spans, flush=True)
    server.stop(None)


if __name__ == "__main__":
    _main(sys.argv[1])
