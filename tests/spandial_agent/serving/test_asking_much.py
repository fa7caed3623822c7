"""A user who keeps the agent looking which of his processes asks. He is another user than the agent's."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from asyncio.subprocess import Process as Child
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from spandial.labels import Labels
from spandial_agent.node import LocalNode
from spandial_agent.processes.proc import Process
from spandial_agent.serving.binding import bind_tcp, bind_unix
from spandial_agent.serving.listeners import serve
from spandial_agent.targets.targets import Targets
from spandial_api.app import build_app
from spandial_api.auth import Access
from spandial_api.control import Author, Control
from spandial_api.rules import Rule
from spandial_api.selectors import Selector
from spandial_api.store import Store
from spandial_api.token_file import TokenFile
from tests.agent_process import PATIENCE_S, eventually

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can be anybody"),
]

HONEST, GREEDY = 1000, 64321
HOLDERS, CONNECTIONS = 6, 120
_PYTHON = os.path.realpath(sys.executable)  # others may not reach the virtual environment
# Has many descriptors.
_HOLD = """
import os, resource, sys
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
for _ in range(min(4000, most - 50)):
    os.dup(0)
print(flush=True)
sys.stdin.read()
"""
# Asks for everything by ever new connections, some of which it closes at once.
_FLOOD = """
import socket, sys, threading
asked = [
    b"GET /api/sampling?service=evil HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n",
    b"POST /GetSamplingRules HTTP/1.1\\r\\nHost: localhost\\r\\nContent-Length: 2\\r\\n\\r\\n{}",
]
def ask(number):
    while True:
        try:
            with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as made:
                made.sendall(asked[number % 2])
                if number % 3:
                    made.recv(65536)
        except OSError:
            pass
for number in range(int(sys.argv[2])):
    threading.Thread(target=ask, args=[number], daemon=True).start()
print(flush=True)
sys.stdin.read()
"""
# For each line that it reads, asks by a new connection for the path in it, and prints the answer.
_ASK = """
import http.client, sys
for line in sys.stdin:
    method, path = line.split()
    made = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
    made.request(method, path, body=b"{}" if method == "POST" else None)
    print(made.getresponse().read().decode(), flush=True)
    made.close()
"""


@asynccontextmanager
async def running(uid: int, program: str, *arguments: object) -> AsyncIterator[Child]:
    pipe = subprocess.PIPE
    command = (_PYTHON, "-I", "-c", program, *map(str, arguments))
    child = await asyncio.create_subprocess_exec(*command, user=uid, cwd="/", env={}, stdin=pipe, stdout=pipe)
    try:
        yield child
    finally:
        child.kill()
        await child.wait()


async def line_of(child: Child) -> bytes:
    assert child.stdout is not None
    return await asyncio.wait_for(child.stdout.readline(), PATIENCE_S)


@pytest.fixture
async def port(node: LocalNode, tmp_path: Path) -> AsyncIterator[int]:
    store, stop = Store(tmp_path / "rules.sqlite"), asyncio.Event()
    control = Control(store, node)
    app = build_app(control, node, access=Access(TokenFile(tmp_path)), version="0")
    await control.put(Rule(Selector(), 1.0), Author("uid 0"))
    await control.put(Rule(Selector(env="gray"), 40.0), Author("uid 0"))
    with bind_tcp("127.0.0.1", 0) as tcp, bind_unix(tmp_path / "api.sock", "no-group-of-this-name") as unix:
        serving = asyncio.create_task(serve(app, tcp, unix, stop))
        yield tcp.getsockname()[1]
        stop.set()
        await asyncio.wait_for(serving, PATIENCE_S)
    store.close()


def known(targets: Targets, pid: int, uid: int, labels: Labels) -> None:
    assert targets.discover(Process(pid, 1, "python", labels, uid=uid)) is not None


async def shares_of(asker: Child) -> list[float]:
    """What it is told, in Jaeger's protocol and in X-Ray's."""
    assert asker.stdin is not None
    asker.stdin.write(b"GET /api/sampling?service=shop\nPOST /GetSamplingRules\n")
    strategy, rules = json.loads(await line_of(asker)), json.loads(await line_of(asker))
    first = rules["SamplingRuleRecords"][0]["SamplingRule"]
    return [strategy["probabilisticSampling"]["samplingRate"], first["FixedRate"]]


async def test_an_honest_process_is_told_its_own_rate_meanwhile(node: LocalNode, targets: Targets, port: int) -> None:
    async with AsyncExitStack() as stack:
        honest = await stack.enter_async_context(running(HONEST, _ASK, port))
        known(targets, honest.pid, HONEST, Labels("shop", env="gray"))
        known(targets, 1 << 29, HONEST, Labels("shop", env="stable"))
        assert await shares_of(honest) == [0.4, 0.4]
        for number in range(HOLDERS):
            holder = await stack.enter_async_context(running(GREEDY, _HOLD))
            await line_of(holder)
            known(targets, holder.pid, GREEDY, Labels("evil", env=("gray", "blue")[number % 2]))
        flood = await stack.enter_async_context(running(GREEDY, _FLOOD, port, CONNECTIONS))
        await line_of(flood)
        askers = node._askers
        await asyncio.to_thread(eventually, lambda: askers.skipped, "looks are skipped")
        for _ in range(10):
            assert await shares_of(honest) == [0.4, 0.4]
