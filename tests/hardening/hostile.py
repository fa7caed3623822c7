"""Small programs of another user, which say a line when they have done what they do and go on until they are ended."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.attacks import USER

__all__ = ["ANSWERS_NOTHING", "CLAIMS", "NAMES", "SERVES", "SPEAKS_TLS", "hostile"]

# Is sent requests that are sampled, so many on so many connections, and answers none.
ANSWERS_NOTHING = """
import os, socket, sys, time
listener = socket.create_server(("127.0.0.1", 0))
time.sleep(2)
held = []
for _ in range(int(sys.argv[1])):
    client = socket.create_connection(listener.getsockname())
    server, _ = listener.accept()
    held.append((client, server))
    for _ in range(int(sys.argv[2])):
        parent = f"00-{os.urandom(16).hex()}-b7ad6b7169203331-01"
        client.send(f"GET /x HTTP/1.1\\r\\nHost: a\\r\\ntraceparent: {parent}\\r\\n\\r\\n".encode())
        server.recv(500)
    time.sleep(0.05)
print("asked", flush=True)
sys.stdin.read()
"""

# Registers under another's name, and writes into its own counts what it likes: argv has the socket, what it says, and
# where in the page the counts of a kind are.
CLAIMS = """
import mmap, socket, sys
connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
connection.connect(sys.argv[1])
connection.send(sys.argv[2].encode())
descriptors = socket.recv_fds(connection, 65536, 4)[1]
page = memoryview(mmap.mmap(descriptors[1], 4096)).cast("Q")
print("registered", flush=True)
for line in sys.stdin:
    for word in map(int, sys.argv[3:]):
        page[word] += 1 << 46
    print("counted", flush=True)
"""

# Maps a file of each name, which are bytes in hexadecimal; all are copies of the first argument.
NAMES = """
import mmap, shutil, sys
held = []
for name in sys.argv[2:]:
    name = bytes.fromhex(name)
    shutil.copy(sys.argv[1], name)
    with open(name, "rb") as file:
        held.append(mmap.mmap(file.fileno(), 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC))
print("mapped", flush=True)
sys.stdin.read()
"""

# Answers HTTP requests with 200; its line is its port.
SERVES = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *_):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
"""

SPEAKS_TLS = """
import ssl, sys
print("loaded", flush=True)
sys.stdin.read()
"""


@contextmanager
def hostile(
    program: str,
    *arguments: str,
    user: int = USER,
    python: str | bytes = "/usr/bin/python3",
    cwd: Path | None = None,
    service: str = "hostile",
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process, whose environment names a service, and its first line."""
    with subprocess.Popen(
        [python, "-c", program, *arguments],
        user=user,
        group=user,
        extra_groups=[],
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", "OTEL_SERVICE_NAME": service},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()
