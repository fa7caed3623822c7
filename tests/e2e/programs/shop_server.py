"""A shop on HTTP, a thread a connection: each request asks Redis and calls a neighbour before it is answered.

Run as `python -m tests.e2e.programs.shop_server REDIS_PORT NEIGHBOUR_URL`; it says its port, and ends with its input.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import redis


class _Shop(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:  # noqa: N802: the library's name
        with redis.Redis(port=int(sys.argv[1]), single_connection_client=True, lib_name=None) as store:
            store.get("price")
        neighbour = http.client.HTTPConnection(urlsplit(sys.argv[2]).netloc)
        neighbour.request("GET", "/stock", headers={"traceparent": self.headers.get("traceparent", "")})
        neighbour.getresponse().read()
        neighbour.close()
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *arguments: object) -> None:
        pass


def main() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Shop)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(json.dumps({"port": server.server_address[1]}), flush=True)
    for _ in sys.stdin:
        pass


if __name__ == "__main__":
    main()
