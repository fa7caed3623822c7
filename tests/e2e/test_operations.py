"""Rules by operation in a real service: each request obeys the dial of its own operation, in kernel and hook alike."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from spandial.abi import RANDOMNESS_MASK, ROWS, Mode, Parent, encode_word
from spandial.decision import decide
from tests.agent_process import AgentProcess, eventually
from tests.e2e.counting import counted, found
from tests.e2e.entry_stream import EntryStream
from tests.e2e.programs.process import Load
from tests.e2e.rpc import grpc_echo
from tests.e2e.services import Server, uvicorn

pytestmark = pytest.mark.e2e

OPERATIONS = [("GET", "/pay"), ("GET", "/pay/17"), ("POST", "/pay"), ("GET", "/orders"), ("GET", "/orders?next=/pay")]
ROUNDS = 40
SERVICE = f"operations-{os.getpid()}"  # whoever else tests on this node has others


class Sent(NamedTuple):
    method: str
    path: str
    trace_id: int


class Scene:
    """A hooked service that is asked for its operations, one after the other, each request in a trace of its own."""

    def __init__(self, agent: AgentProcess, server: Server, folder: Path) -> None:
        self.agent, self.server = agent, server
        self._kept = folder / f"kept.{server.pid}"
        self._kept.touch()
        self._random = random.Random(5)
        self.sent = 0

    def ask(self) -> list[Sent]:
        """What was sent; every response has come."""
        sent = []
        with httpx.Client(base_url=self.server.url) as client:
            for method, path in OPERATIONS * ROUNDS:
                trace_id = self._random.getrandbits(128) | 1
                client.request(method, path, headers={"traceparent": f"00-{trace_id:032x}-b7ad6b7169203331-00"})
                sent.append(Sent(method, path, trace_id))
        self.sent += len(sent)
        return sent

    def kept(self, sent: list[Sent], count: int) -> list[Sent]:
        """Those that the hook kept, once there are so many: a span ends after its response."""

        def found() -> list[Sent]:
            data = self._kept.read_bytes()
            ids = {int.from_bytes(data[at : at + 16], "big") for at in range(0, len(data), 16)}
            return [request for request in sent if request.trace_id in ids]

        eventually(lambda: len(found()) >= count, f"{count} kept spans have ended")
        return found()

    def http(self) -> dict[str, dict[str, int]]:
        """The counts, once the hook has told of all that was sent: ``/stats`` waits for hooks 50 ms and no longer."""

        def told() -> dict[str, dict[str, int]] | None:
            target = next(t for t in self.agent.get("/stats")["targets"] if t["pid"] == self.server.pid)
            counts: dict[str, dict[str, int]] = target["kinds"]["http"]
            return counts if sum(counts["hook"].values()) >= self.sent else None

        found: dict[str, dict[str, int]] = eventually(told, "the hook tells what it has decided")
        return found

    def obeys(self, rates: Callable[[str, str], float]) -> None:
        """Each request is kept by the rate of its own operation, and counted."""
        before = self.http()["hook"] if self.sent else {"remote_kept": 0, "remote_dropped": 0}
        sent = self.ask()
        expected = [
            request
            for request in sent
            if decide(
                encode_word(rates(request.method, request.path), Mode.STRICT),
                request.trace_id & RANDOMNESS_MASK,
                Parent.REMOTE_DROPPED,
            )
        ]
        assert self.kept(sent, len(expected)) == expected
        after = self.http()["hook"]
        assert after["remote_kept"] - before["remote_kept"] == len(expected)
        assert after["remote_dropped"] - before["remote_dropped"] == len(sent) - len(expected)


@pytest.fixture(params=["memfd", pytest.param("bpf", marks=pytest.mark.kernel)])
def scene(request: pytest.FixtureRequest, make_agent: Callable[..., AgentProcess], tmp_path: Path) -> Iterator[Scene]:
    agent = make_agent(SPANDIAL_TABLE=request.param)
    agent.set(0, mode="strict", service=SERVICE)
    with uvicorn(agent, tmp_path, service=SERVICE) as server:
        yield Scene(agent, server, tmp_path)


def is_pay(method: str, path: str) -> bool:
    return method == "GET" and path.startswith("/pay")


def test_one_operation_is_turned_up_and_down_while_the_rest_stays(scene: Scene) -> None:
    scene.obeys(lambda method, path: 0)
    pay = {"service": SERVICE, "operation": "GET /pay*"}
    one = {"service": SERVICE, "operation": "GET /pay/*", "protocol": "http"}
    for rate in (100, 30, 0, 100):
        assert scene.agent.set(rate, mode="strict", **pay)["reached"] == 1
        scene.obeys(lambda method, path, rate=rate: rate if is_pay(method, path) else 0)  # type: ignore[misc]
    scene.agent.set(100, mode="strict", **one)
    scene.agent.set(50, mode="strict", service=SERVICE)
    scene.agent.set(0, mode="strict", **pay)
    scene.obeys(lambda method, path: 100 if path == "/pay/17" else 0 if is_pay(method, path) else 50)
    for selector in (pay, one):
        assert scene.agent.http.delete("/sampling", params=selector).is_success
    scene.obeys(lambda method, path: 50)
    health = scene.agent.get("/healthz")
    assert health["free_rows"] == ROWS - 2 - health["targets"]  # the rows of the rules are free again
    http = scene.http()
    if http["kernel"] is not None:
        assert (http["kernel"]["seen"], http["difference_seen"], http["difference_kept"]) == (scene.sent, 0, 0)


def test_an_agent_that_returns_is_obeyed_by_operation_again(scene: Scene) -> None:
    scene.agent.set(100, service=SERVICE, operation="GET /pay*", mode="strict")
    scene.obeys(lambda method, path: 100 * is_pay(method, path))
    scene.agent.kill()
    scene.agent.start()
    scene.agent.hooked(SERVICE)
    scene.sent = 0
    scene.obeys(lambda method, path: 100 * is_pay(method, path))
    scene.agent.set(100, service=SERVICE, operation="GET /orders", mode="strict")
    scene.obeys(lambda method, path: 100 * (is_pay(method, path) or path.startswith("/orders")))


@pytest.mark.kernel
def test_calls_of_a_process_without_a_hook_obey_the_dial_of_their_method(
    make_agent: Callable[..., AgentProcess],
) -> None:
    agent = make_agent()
    agent.set(0, service=SERVICE, mode="strict")
    agent.set(100, service=SERVICE, operation="/echo.Echo/Unary", mode="strict")
    agent.set(30, service=SERVICE, operation="/echo.Echo/Server*", mode="strict")
    word = encode_word(30, Mode.STRICT)
    with grpc_echo(environment={"OTEL_SERVICE_NAME": SERVICE}) as server, Load("grpc", {}) as load:
        found(agent, SERVICE)
        stream = EntryStream(agent, SERVICE)
        expected = set()
        for method in ("Unary", "ServerStream", "ClientStream"):
            report = load.run(
                "calls", address=server.address, count=200, concurrency=4, method=method, seed=5, each=True
            )
            expected |= {
                (f"/echo.Echo/{method}", call.traceparent[3:35])
                for call in report.each
                if method == "Unary"
                or (method == "ServerStream" and decide(word, int(call.traceparent[21:35], 16), Parent.REMOTE_KEPT))
            }
        entries = eventually(lambda: stream.entries if len(stream.entries) >= len(expected) else None, "all entries")
        counts = counted(agent, SERVICE, "grpc")
        losses = agent.get("/stats")["losses"]
    assert {(entry["path"], entry["trace_id"]) for entry in entries} == expected
    assert (counts["seen"], counts["kept"], losses["undecided"]) == (600, len(expected), 0)
