"""A collector whose certificate is not trusted gets nothing, and its spans are lost and counted: it is no outage."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spandial_agent.spans.export import Exporter
from tests.agent_process import eventually
from tests.certificates import self_signed
from tests.spandial_agent.spans.offering import offered

pytestmark = pytest.mark.needs("openssl")


@pytest.fixture
def untrusted(tmp_path: Path) -> Iterator[tuple[str, list[bytes]]]:
    """Where a server listens that shows such a certificate, and what it was sent behind a handshake."""
    made, received = self_signed(tmp_path), []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.certificate, made.key)
    context.set_alpn_protocols(["h2"])
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                peer, _ = listener.accept()
                with contextlib.suppress(OSError), peer, context.wrap_socket(peer, server_side=True) as connection:
                    if data := connection.recv(1 << 16):
                        received.append(data)

    thread = threading.Thread(target=serve)
    thread.start()
    yield f"https://127.0.0.1:{listener.getsockname()[1]}", received
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_certificate_that_is_not_trusted_is_no_outage(
    untrusted: tuple[str, list[bytes]], make_exporter: Callable[..., Exporter], protocol: str
) -> None:
    endpoint, received = untrusted
    exporter = make_exporter(endpoint, protocol)
    offered(exporter, 20, 1)
    eventually(lambda: exporter.counts().export_failed == 20, "the spans are counted as lost")
    assert received == []
