"""What another user's process says of itself, and how it is called, costs nobody else anything."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from bench.attacks import USER

from spandial import abi
from spandial.abi import EntryKind, Flag
from tests.agent_process import AgentProcess, eventually
from tests.spandial.applications import Application
from tests.spandial_agent.spans.otlp_receiver import OtlpReceiver, receiver_command

from .attacked import Attacked, attacked
from .hostile import CLAIMS, NAMES, SERVES, hostile

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")

_ROOT_DROPPED = abi.PAGE_COUNTS + EntryKind.HTTP * abi.PAGE_KIND_STRIDE


def test_counts_that_are_lies_move_the_rate_of_who_tells_them_and_nobody_elses() -> None:
    """Neither is the circuit opened of the tenant whose name he uses."""
    named = {"OTEL_SERVICE_NAME": "checkout", "OTEL_RESOURCE_ATTRIBUTES": "tenant.id=acme"}
    settings = {"SPANDIAL_QUOTA": "50000", "SPANDIAL_BREAKER_OVER_SECONDS": "1"}
    hello = {"abi": abi.ABI, "service": "checkout", "tenant": "acme", "default": (1 << 8) | int(Flag.VALID)}
    with (
        attacked(SPANDIAL_TABLE="memfd", SPANDIAL_CAPTURE_TLS="off", **settings) as node,
        Application(node.agent.run_dir, DEFAULT="1", **named) as checkout,
    ):
        node.agent.http.put("/sampling", params={"target": "100000", "service": "checkout"}).raise_for_status()
        eventually(lambda: steered(node, checkout.pid), "the rate is steered")
        checkout.report()  # what it did before
        words = str(_ROOT_DROPPED), str(_ROOT_DROPPED + 1)
        with hostile(CLAIMS, str(node.agent.run_dir / "app.sock"), json.dumps(hello), *words) as (liar, said):
            assert said == "registered"
            checkout.obeys(100)
            before = len(checkout.reports())
            eventually(lambda: lies(liar) and is_held(node, liar.pid), "the liar's own rate falls")
            checkout.report()
            assert {report["rate"] for report in checkout.reports()[before:]} == {100}


def lies(liar: subprocess.Popen[str]) -> str:
    assert liar.stdin is not None
    assert liar.stdout is not None
    liar.stdin.write("\n")
    liar.stdin.flush()
    return liar.stdout.readline()


def steered(node: Attacked, pid: int) -> bool:
    """It begins low, and rises once it is known what is asked for."""
    target = node.agent.target(pid)
    return (
        target is not None and target["rates"]["http"]["rule"] != "default" and target["rates"]["http"]["rate"] == 100
    )


def is_held(node: Attacked, pid: int) -> bool:
    target = node.agent.target(pid)
    return target is not None and target["rates"]["http"]["rate"] < 50


def test_clients_that_are_made_up_leave_others_their_part_of_a_reservoir() -> None:
    with attacked(SPANDIAL_TABLE="memfd", SPANDIAL_CAPTURE_TLS="off") as node:
        node.agent.http.put("/sampling", params={"target": "100", "service": "s0"}).raise_for_status()
        honest = {"RuleName": "service=s0", "ClientID": "honest", "Timestamp": 1, "RequestCount": 100}
        document = {**honest, "SampledCount": 0, "BorrowCount": 0}

        def quota() -> int:
            answer = node.tcp.post("/SamplingTargets", json={"SamplingStatisticsDocuments": [document]})
            return int(answer.json()["SamplingTargetDocuments"][0]["ReservoirQuota"])

        assert quota() == 100
        with node.by("reservoirs"):
            eventually(lambda: quota() < 100, "another user shares the reservoir")
            assert [quota() for _ in range(5)] == [50] * 5


@pytest.mark.kernel
@pytest.mark.needs("gcc")
def test_names_that_are_no_text_take_nobodys_tls_and_nobodys_answers() -> None:
    with attacked() as node:
        own = node.folder / "own"
        own.mkdir()
        os.chown(own, USER, USER)
        library, source = own / "libssl.so", b"int SSL_read(void) { return 1; } int SSL_write(void) { return 2; }"
        gcc = ["gcc", "-shared", "-fPIC", "-x", "c", "-o", str(library), "-"]
        subprocess.run(gcc, input=source, check=True)
        names = (name.hex() for name in (b"libssl\xff\x1b[31m\n.so", b"libgnutls.so.\xff"))
        with (
            hostile(NAMES, str(library), *names, python=odd_copy(own), cwd=own) as (attacker, said),
            hostile("import ssl, sys; print(1, flush=True); sys.stdin.read()", user=0, service="honest") as (
                process,
                _,
            ),
        ):
            assert said == "mapped"
            for pid in (attacker.pid, process.pid):
                eventually(lambda pid=pid: tls(node.agent, pid), "its TLS is followed")
            assert node.agent.get("/healthz")["status"] == "ok"
            assert "\x1b" not in node.agent.log.read_text(errors="surrogateescape")


def odd_copy(folder: Path) -> bytes:
    """A Python whose name is no text."""
    path = os.fsencode(folder) + b"/python\xff\n"
    shutil.copy(os.path.realpath("/usr/bin/python3"), path)
    return path


def tls(agent: AgentProcess, pid: int) -> bool:
    target = agent.target(pid)
    return target is not None and "OpenSSL" in target["tls"]


@pytest.mark.kernel
@pytest.mark.skipif(receiver_command() is None, reason="there is no OTLP receiver: run deploy/setup")
def test_a_program_whose_name_is_no_text_costs_nobody_a_span(tmp_path: Path) -> None:
    receiver = OtlpReceiver(tmp_path)
    receiver.start()
    try:
        with attacked(SPANDIAL_CAPTURE_TLS="off", OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint("http")) as node:
            own = node.folder / "own"
            own.mkdir()
            services = "its-name-is-no-text", "its-name-is-text"
            node.agent.set(100)
            with (
                hostile(SERVES, python=odd_copy(own), service=services[0]) as (_, port),
                hostile(SERVES, user=0, service=services[1]) as (_, honest_port),
            ):

                def exported() -> bool:
                    get(int(port))
                    get(int(honest_port))
                    found = [span.resource["service.name"] for span in receiver.spans()]
                    return all(found.count(service) >= 20 for service in services)

                eventually(exported, "the spans of both are exported")
            losses = node.agent.get("/stats")["losses"]
            assert not any(count for reason, count in losses.items() if reason.startswith("span"))
    finally:
        receiver.kill()


def get(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/")
    assert connection.getresponse().status == 200
    connection.close()
