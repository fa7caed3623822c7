"""A server that stands in for a kubelet: it says so, and serves `/pods` of Kubernetes' API."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

__all__ = ["CONTAINER", "POD", "KubeletStandIn", "pod"]

POD = "0b7ad8a5-2a6b-4a6c-9c0e-3f8b5f1f0a11"
CONTAINER = "c0" * 32


def pod(uid: str = POD, container: str = CONTAINER, **metadata: Any) -> dict[str, Any]:
    """A v1.Pod of a Deployment."""
    return {
        "metadata": {
            "name": "shop-6d4cf56db6-x2x9z",
            "namespace": "gray",
            "uid": uid,
            "labels": {"pod-template-hash": "6d4cf56db6"},
            "ownerReferences": [{"kind": "ReplicaSet", "name": "shop-6d4cf56db6"}],
            **metadata,
        },
        "spec": {"nodeName": "node-3"},
        "status": {"containerStatuses": [{"name": "app", "containerID": f"containerd://{container}"}]},
    }


class KubeletStandIn:
    """Answers on a port of its own until `stop`.

    Attributes:
        pods: what it lists.
        status: what it answers with.
        asked: the Authorization header of each request.
        slow: answers wait for this.
    """

    def __init__(self, certificate: Path | None = None, key: Path | None = None) -> None:
        self.pods: list[Mapping[str, Any]] = []
        self.status = 200
        self.body: bytes | None = None
        self.asked: list[str] = []
        self.slow = threading.Event()
        self.slow.set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        scheme = "http"
        if certificate is not None:
            scheme = "https"
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate, key)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"{scheme}://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        kubelet = self

        class Handler(BaseHTTPRequestHandler):
            server_version = "spandial-kubelet-stand-in"

            def do_GET(self) -> None:
                kubelet.asked.append(self.headers.get("Authorization", ""))
                kubelet.slow.wait(30)
                body = json.dumps({"kind": "PodList", "items": kubelet.pods}).encode()
                body = body if kubelet.body is None else kubelet.body
                self.send_response(kubelet.status if self.path == "/pods" else 404)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler

    def stop(self) -> None:
        self.slow.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
