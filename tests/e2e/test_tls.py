"""What un-hooked services send and receive by TLS is counted exactly, once, and becomes spans."""

from __future__ import annotations

import os
import platform
import shutil
import ssl
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from spandial_agent.capture.mappings import Library, look_at
from spandial_agent.processes.held import HeldProcess
from tests.agent_process import PATIENCE_S, AgentProcess, eventually
from tests.e2e import databases
from tests.e2e.counting import PARENT
from tests.e2e.programs.process import Load
from tests.e2e.services import Server, h2load
from tests.e2e.test_counts import counts
from tests.e2e.tls_servers import EDGE, FRONT, SHOP, tls_nginx, tls_node, tls_uvicorn
from tests.spandial_agent.spans.otlp_receiver import OtlpReceiver

pytest_plugins = ["tests.e2e.programs.fixtures"]
pytestmark = [pytest.mark.kernel, pytest.mark.e2e, pytest.mark.needs("h2load", "openssl")]

SERVERS = [
    pytest.param(lambda agent, folder: tls_uvicorn(folder), SHOP, marks=pytest.mark.needs("openssl")),
    pytest.param(lambda agent, folder: tls_nginx([agent], folder), EDGE, marks=pytest.mark.needs("nginx")),
    pytest.param(lambda agent, folder: tls_node(folder), FRONT, marks=pytest.mark.needs("node")),
]
TILL = f"till-{os.getpid()}"
Start = Callable[[AgentProcess, Path], AbstractContextManager[Server]]


@pytest.fixture
def make_agent(make_agent: Callable[..., AgentProcess]) -> Callable[..., AgentProcess]:
    """Start agents that follow TLS, which other tests' do not."""
    return lambda **settings: make_agent(SPANDIAL_CAPTURE_TLS="auto", **settings)


def followed(agent: AgentProcess, service: str) -> list[dict[str, Any]]:
    """The service's processes, once the TLS of all of them is followed."""

    def all_of_them() -> list[dict[str, Any]]:
        targets = [target for target in agent.get("/targets") if target["service"] == service]
        return targets if all(target["tls"].startswith("OpenSSL (") for target in targets) else []

    found: list[dict[str, Any]] = eventually(all_of_them, f"the TLS of {service} is followed")
    return found


@pytest.mark.parametrize("path", ["socket", "sys_exit"])
@pytest.mark.parametrize(("start", "service"), SERVERS)
def test_every_request_is_seen_once(
    make_agent: Callable[..., AgentProcess], tmp_path: Path, start: Start, service: str, path: str
) -> None:
    agent = make_agent(SPANDIAL_CAPTURE=path)
    with start(agent, tmp_path) as server:
        followed(agent, service)
        h2load(server, 20_000, PARENT)
        found = counts(agent, service)
        assert found["seen"] == found["seen_traced"] == found["kept"] == 20_000
        h2load(server, 1000)
        found = counts(agent, service)
        assert (found["seen"], found["seen_traced"]) == (21_000, 20_000)
        kinds = [target["kinds"] for target in agent.get("/stats")["targets"] if target["service"] == service]
        assert {kind for one in kinds for kind in one} == {"http"}
    losses = agent.get("/stats")["losses"]
    assert [losses[reason] for reason in ("unreadable", "desync", "no_memory", "recursion")] == [0, 0, 0, 0]


def test_http2_by_tls(agent: AgentProcess, tmp_path: Path) -> None:
    with tls_nginx([agent], tmp_path, http2=True) as server:
        followed(agent, EDGE)
        command = ["h2load", "-n", "20000", "-c", "8", "-m", "10", "-H", PARENT, server.url + "/pay"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True).stdout
        assert "20000 succeeded" in done
        assert "h2" in done
        found = counts(agent, EDGE)
    assert found["seen"] == found["seen_traced"] == 20_000


def test_a_server_that_was_there_before_the_agent(make_agent: Callable[..., AgentProcess], tmp_path: Path) -> None:
    with tls_node(tmp_path) as server:
        agent = make_agent()
        (target,) = followed(agent, FRONT)
        assert target["tls"] == "OpenSSL (node)"
        h2load(server, 1000)
        assert counts(agent, FRONT)["seen"] == 1000


def test_a_process_of_a_known_library_is_followed_from_its_first_request(agent: AgentProcess, tmp_path: Path) -> None:
    with tls_uvicorn(tmp_path):
        followed(agent, SHOP)
    with tls_uvicorn(tmp_path) as server:
        eventually(lambda: agent.target(server.pid), "it is found")
        h2load(server, 500)
        assert counts(agent, SHOP)["seen"] == 500


def test_statements_by_tls(agent: AgentProcess, postgres_template: Path) -> None:
    labels = {"OTEL_SERVICE_NAME": TILL}
    with databases.postgres(postgres_template, tls=True) as server, Load("postgres", labels) as load:
        (target,) = followed(agent, TILL)
        assert "libssl" in target["tls"]
        address = server.address() + " sslmode=require"
        for protocol in ("simple", "extended", "prepared"):
            load.run("statements", address=address, count=100, connections=4, protocol=protocol)
        (stats,) = [target for target in agent.get("/stats")["targets"] if target["service"] == TILL]
        assert stats["kinds"]["db"]["kernel"]["seen"] == server.served().total == 300


@pytest.mark.parametrize(("start", "service"), SERVERS)
def test_every_kept_request_is_a_span(
    make_agent: Callable[..., AgentProcess], receiver: OtlpReceiver, tmp_path: Path, start: Start, service: str
) -> None:
    agent = make_agent(
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint("http"), OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf"
    )

    def spans() -> list[Any]:
        return [span for span in receiver.spans() if span.resource.get("service.name") == service]

    with start(agent, tmp_path) as server:
        followed(agent, service)
        h2load(server, 300, PARENT)
        eventually(lambda: len(spans()) >= 300, "300 spans")
    found = spans()
    assert len({span.span_id for span in found}) == len(found) == 300
    assert {(span.name.partition(" ")[0], span.kind, span.parent_span_id) for span in found} == {
        ("GET", "server", 0xB7AD6B7169203331)
    }
    assert {span.attributes["http.response.status_code"] for span in found} == {200}


def first_byte(pid: int, library: Library, function: str) -> int:
    """Of a function, in the process's memory: a breakpoint while it is attached to."""
    begin, _, offset = next(
        (int(fields[0].partition("-")[0], 16), fields[1], int(fields[2], 16))
        for fields in map(str.split, Path(f"/proc/{pid}/maps").read_text().splitlines())
        if "x" in fields[1] and fields[-1].endswith(library.name)
    )
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(begin + library.offsets[function] - offset)
        return memory.read(1)[0]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="another breakpoint")
def test_a_stopped_agent_leaves_nothing_behind(make_agent: Callable[..., AgentProcess], tmp_path: Path) -> None:
    # Nobody but this agent has reason to attach to this library: no label says that its process is a target.
    agent = make_agent(SPANDIAL_DISCOVER=f"include cmdline=*{tmp_path}* service={SHOP}")
    assert ssl.OPENSSL_VERSION  # this process has the library mapped, too
    with HeldProcess(os.getpid()) as process, look_at(process) as seen:
        libssl = next(library for library in seen.libraries if library.name.startswith("libssl.so"))
        shutil.copy(os.readlink(libssl.path), tmp_path)
    with tls_uvicorn(tmp_path, LD_LIBRARY_PATH=str(tmp_path), OTEL_SERVICE_NAME="") as server:
        eventually(lambda: agent.target(server.pid), "the rule includes it")
        followed(agent, SHOP)
        with HeldProcess(server.pid) as process, look_at(process) as seen:
            (library,) = seen.libraries
        h2load(server, 100)
        assert {first_byte(server.pid, library, name) for name in library.offsets} == {0xCC}
        assert agent.stop() == 0
        eventually(
            lambda: 0xCC not in {first_byte(server.pid, library, name) for name in library.offsets},
            "the kernel has taken the probes away",
        )
        h2load(server, 100)


def test_a_statically_linked_library_is_said_not_to_be_seen(agent: AgentProcess, tmp_path: Path) -> None:
    """An executable of somebody else's that says of itself what a stripped one says."""
    program = tmp_path / "service"
    shutil.copy("/bin/sleep", program)
    with open(program, "ab") as file:
        file.write(b"\0/root/.cargo/registry/src/rustls-0.23.12/src/conn.rs\0")
    process = subprocess.Popen([program, "60"], env={"OTEL_SERVICE_NAME": "stat"})
    try:
        eventually(
            lambda: (agent.target(process.pid) or {}).get("tls") == "not seen: statically linked (rustls)", "it is said"
        )
    finally:
        process.kill()
        process.wait()
