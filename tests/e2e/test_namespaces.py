"""A process in a container is found, counted, decided and described by what the host knows of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.agent_process import AgentProcess, eventually
from tests.e2e.namespaces import CONTAINER_ID, Container, container
from tests.e2e.services import h2load, node, uvicorn
from tests.spandial_agent.spans.otlp_receiver import OtlpReceiver, ReceivedSpan

pytestmark = [pytest.mark.kernel, pytest.mark.e2e, pytest.mark.needs("h2load", "ip", "unshare")]

REQUESTS = 2_000
PARENT = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def isolated() -> Iterator[Container]:
    with container() as made:
        yield made


@pytest.fixture(params=["socket", "sys_exit"])
def any_agent(request: pytest.FixtureRequest, make_agent: Callable[..., AgentProcess]) -> AgentProcess:
    return make_agent(SPANDIAL_CAPTURE=request.param)


def http(agent: AgentProcess, pid: int) -> dict[str, Any]:
    """The counts, once the hook has told of all that the kernel saw: ``/stats`` waits for hooks 50 ms and no longer."""

    def told() -> dict[str, Any] | None:
        [target] = [target for target in agent.get("/stats")["targets"] if target["pid"] == pid]
        counts: dict[str, Any] = target["kinds"].get("http", {})
        return None if counts.get("difference_seen") else counts

    found: dict[str, Any] = eventually(told, "the hook tells what it has decided")
    return found


def inner_pid(pid: int) -> int:
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("NSpid:")]
    assert int(line.split()[1]) == pid
    return int(line.split()[-1])


@pytest.mark.parametrize("inside", [False, True], ids=["over veth", "from inside"])
@pytest.mark.needs("node")
def test_a_container_without_a_hook_is_counted(
    any_agent: AgentProcess, isolated: Container, inside: bool, tmp_path: Path
) -> None:
    with node(tmp_path, host=isolated.address, within=isolated.server) as server:
        assert inner_pid(server.pid) == 1
        target = eventually(lambda: any_agent.target(server.pid), "it is found")
        assert (target["service"], target["name"]) == ("front", "node")
        h2load(server, REQUESTS, PARENT, within=isolated.client if inside else ())
        kernel = http(any_agent, server.pid)["kernel"]
        assert kernel["seen"] == kernel["seen_traced"] == kernel["kept_traced"] == REQUESTS
        pid = server.pid
    eventually(lambda: any_agent.target(pid) is None, "it is gone")


@pytest.mark.parametrize("inside", [False, True], ids=["over veth", "from inside"])
def test_kernel_and_hook_of_a_container_are_at_one(
    agent: AgentProcess, isolated: Container, inside: bool, tmp_path: Path
) -> None:
    agent.set(100, service="shop")
    with uvicorn(agent, tmp_path, host=isolated.address, within=isolated.server) as server:
        assert inner_pid(server.pid) == 1
        assert [target["pid"] for target in agent.hooked("shop")] == [server.pid]
        h2load(server, REQUESTS, PARENT, within=isolated.client if inside else ())
        counts = http(agent, server.pid)
        assert counts["kernel"]["seen"] == counts["kernel"]["kept_traced"] == REQUESTS
        assert counts["hook"]["remote_kept"] == REQUESTS
        assert counts["difference_seen"] == counts["difference_kept"] == 0
        agent.set(0, service="shop", mode="strict")
        h2load(server, REQUESTS, PARENT, within=isolated.client if inside else ())
        counts = http(agent, server.pid)
        assert counts["hook"]["remote_dropped"] == REQUESTS
        assert counts["difference_seen"] == counts["difference_kept"] == 0


@pytest.mark.needs("node")
def test_a_port_in_a_container_makes_a_target(
    make_agent: Callable[..., AgentProcess], isolated: Container, tmp_path: Path
) -> None:
    agent = make_agent(SPANDIAL_DISCOVER="include exe=node port=1024-65535 service=by-port")
    with node(tmp_path, service="", host=isolated.address, within=isolated.server) as server:
        eventually(lambda: (agent.target(server.pid) or {}).get("service") == "by-port", "it is found by its port")


@pytest.mark.needs("node")
def test_spans_say_which_container(
    make_agent: Callable[..., AgentProcess], receiver: OtlpReceiver, isolated: Container, tmp_path: Path
) -> None:
    agent = make_agent(OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint("http"))
    service = f"contained-{os.getpid()}"
    with node(tmp_path, service=service, host=isolated.address, within=isolated.server) as server:
        eventually(lambda: agent.target(server.pid), "it is found")
        h2load(server, 50, PARENT)

        def received() -> list[ReceivedSpan]:
            return [span for span in receiver.spans() if span.resource["service.name"] == service]

        spans = eventually(lambda: found if len(found := received()) >= 50 else None, "the spans arrive")
        assert len(spans) == 50
        known = {
            "service.name": service,
            "service.version": "1",
            "deployment.environment.name": "stable",
            "process.pid": server.pid,
            "process.vpid": 1,
            "process.executable.name": "node",
            "container.id": CONTAINER_ID,
            "host.name": os.uname().nodename,
        }
        assert {name: spans[0].resource.get(name) for name in known} == known
        assert {tuple(span.resource.items()) for span in spans} == {tuple(spans[0].resource.items())}
